//! Transactions that are received while they are open, against the same ones read whole: two slots on one
//! database see the same changes, with the same positions, in the same order.

mod script;

use std::collections::{HashMap, VecDeque};

use self::script::Dice;
use super::*;
use walhook_core::tick::Tick;
use walhook_decode::change::Ours;
use walhook_decode::pgoutput::Protocol;
use walhook_decode::streamed::{
    Committed, Done, FileId, OpenTransactions, Order, Payload, Play, Settings, Taken,
};

/// The least that PostgreSQL allows.
const STREAM_ABOVE: u64 = 64 << 10;

/// Little, so that most lies in the spool.
const MEMORY_BYTES: usize = 256 << 10;

/// A reader that plays what has committed: at once, or in turns with what comes live.
struct Reader<'c> {
    cluster: &'c Cluster,
    slot: &'static str,
    /// `None`: whole transactions only.
    open: Option<OpenTransactions>,
    ours: VecDeque<Ours>,
    files: HashMap<FileId, Vec<u8>>,
    changes: Changes,
    told: Vec<Told>,
    /// Whether the last transaction has come.
    marked: bool,
    in_turns: bool,
    /// A transaction that has to be read whole ends there.
    whole_until: Option<Lsn>,
    /// Transactions that were played, those that had to be read whole, and how often the server refused.
    played: usize,
    unclear: usize,
    refused: usize,
    spooled: u64,
}

impl<'c> Reader<'c> {
    fn new(cluster: &'c Cluster, slot: &'static str, streams: bool, in_turns: bool) -> Self {
        let prefixes = vec!["p".to_owned()];
        let settings = Settings { memory_bytes: MEMORY_BYTES, spool: true, prefixes };
        Self {
            cluster,
            slot,
            open: streams.then(|| OpenTransactions::new(settings)),
            ours: VecDeque::new(),
            files: HashMap::new(),
            changes: Changes::new(Lsn::ZERO),
            told: Vec::new(),
            marked: false,
            in_turns,
            whole_until: None,
            played: 0,
            unclear: 0,
            refused: 0,
            spooled: 0,
        }
    }

    async fn connect(&mut self) -> Stream {
        self.changes.handle_reconnected();
        if let Some(open) = &mut self.open {
            open.handle_reconnected();
        }
        let at = self.changes.resume_lsn();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let replication = connect(&url(self.cluster), "test").await.unwrap();
            let mut replication = replication.with_messages(true);
            if self.streams() {
                replication.stream_above(STREAM_ABOVE).await.unwrap();
            }
            match replication.start(self.slot, "p", at, MAX_MESSAGE).await {
                Ok(stream) => return stream,
                Err(error) if classify(&error) == Class::SlotInUse && Instant::now() < deadline => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Reads until the mark, losing the connection after each of `lives` messages.
    async fn read(&mut self, lives: &[u64]) {
        self.read_on(lives).await;
        if self.open.is_some() {
            self.spool();
        }
    }

    async fn read_on(&mut self, lives: &[u64]) {
        let mut lives = lives.iter();
        let mut stream = self.connect().await;
        let mut left = lives.next().copied().unwrap_or(u64::MAX);
        while !self.marked || self.played_is_open() {
            if left == 0 {
                drop(stream);
                stream = self.connect().await;
                left = lives.next().copied().unwrap_or(u64::MAX);
            }
            left -= 1;
            if self.played_is_open() && self.in_turns {
                self.play_one();
                if self.marked {
                    continue;
                }
            }
            let next = timeout(PATIENCE, stream.next()).await;
            let next = next.unwrap_or_else(|_| panic!("only {:#?}", self.told.last()));
            let next = match next {
                Ok(frame) => frame,
                // What the server cannot send of an open transaction it can when that has ended. PostgreSQL
                // 18 says, of what comes by the seed 102, "could not map filenumber to relation OID".
                Err(error) if classify(&error) == Class::Unsendable && self.streams() => {
                    self.whole_until = Some(Lsn(self.changes.resume_lsn().0 + 1));
                    self.refused += 1;
                    drop(stream);
                    stream = self.connect().await;
                    continue;
                }
                Err(error) => panic!("{}: {error:?}, behind {:?}", self.slot, self.told.last()),
            };
            if !self.handle(next) {
                drop(stream);
                stream = self.connect().await;
            }
        }
    }

    fn streams(&self) -> bool {
        self.open.is_some() && self.whole_until.is_none()
    }

    fn played_is_open(&self) -> bool {
        self.changes.played().is_some() || !self.ours.is_empty()
    }

    /// Takes a frame. Whether the connection is of any more use.
    fn handle(&mut self, frame: Frame) -> bool {
        let (at, payload) = match &frame {
            Frame::XLogData { wal_start, payload, .. } => (*wal_start, Payload::Whole(payload)),
            Frame::Oversize { wal_start, head, bytes, .. } => {
                (*wal_start, Payload::Oversize { head, bytes: *bytes })
            }
            Frame::Keepalive { .. } => return true,
        };
        let streams = self.open.as_mut().filter(|_| self.whole_until.is_none());
        let Some(open) = streams else {
            self.live(at, payload);
            let done = self.whole_until.filter(|end| self.changes.resume_lsn() >= *end);
            return done.is_none_or(|_| {
                self.whole_until = None;
                false
            });
        };
        match open.handle(Tick(0), at, payload).unwrap() {
            Taken::Live => self.live(at, payload),
            Taken::Passed | Taken::Kept(_) => {}
            Taken::Committed(committed) => self.committed(committed),
            Taken::Unclear { end_lsn, .. } => {
                self.unclear += 1;
                self.whole_until = Some(end_lsn);
                return false;
            }
        }
        self.spool();
        true
    }

    fn live(&mut self, at: Lsn, payload: Payload<'_>) {
        let message = match payload {
            Payload::Whole(bytes) => decode(Protocol::V4, bytes).unwrap(),
            Payload::Oversize { head, bytes } => decode_head(Protocol::V4, head, bytes).unwrap(),
        };
        let first = self.told.len();
        let told = self.changes.handle(at, message).unwrap();
        // Those that no rule wants are not kept where transactions are streamed.
        let is_wanted = |(what, _): &Told| !what.starts_with("message of no rule");
        self.told.extend(told.iter().map(tell).filter(is_wanted));
        self.marked |= self.told[first..].iter().any(|(what, _)| what == "mark: insert 1");
    }

    fn committed(&mut self, committed: Committed) {
        let Committed { transaction, end_lsn, described, .. } = committed;
        match self.changes.handle_streamed(transaction, end_lsn).unwrap() {
            None => self.open.as_mut().unwrap().forget_committed(),
            Some(ours) => self.ours.push_back(ours),
        }
        for message in described {
            self.live(Lsn::ZERO, Payload::Whole(&message));
        }
        while !self.in_turns && self.played_is_open() {
            self.play_one();
        }
    }

    fn play_one(&mut self) {
        if self.changes.played().is_none() {
            let ours = self.ours.pop_front().unwrap();
            self.told.extend(self.changes.begin_play(ours).iter().map(tell));
            self.played += 1;
        }
        match self.open.as_mut().unwrap().play().unwrap() {
            Play::Wait => self.spool(),
            Play::End => self.told.extend(self.changes.end_play().iter().map(tell)),
            Play::Record(record) => {
                let message = match record.oversize {
                    None => decode(Protocol::V1, &record.payload).unwrap(),
                    Some(bytes) => decode_head(Protocol::V1, &record.payload, bytes).unwrap(),
                };
                let steps = self.changes.play(record.wal_start, message).unwrap();
                self.told.extend(steps.iter().map(tell));
            }
        }
    }

    /// Does what the spool is to do, in memory.
    fn spool(&mut self) {
        let open = self.open.as_mut().unwrap();
        while let Some(order) = open.poll_order() {
            let done = match order {
                Order::Write { file, offset, chunks } => {
                    let kept = self.files.entry(file).or_default();
                    kept.truncate(usize::try_from(offset).unwrap());
                    kept.extend(chunks.concat());
                    self.spooled += u64::try_from(chunks.concat().len()).unwrap();
                    Done::Written { file }
                }
                Order::Read { file, offset, bytes } => {
                    let at = usize::try_from(offset).unwrap();
                    let bytes = self.files[&file][at..at + bytes].to_vec().into();
                    Done::Read { file, offset, bytes }
                }
                Order::Remove { file } => {
                    self.files.remove(&file);
                    continue;
                }
            };
            open.handle_done(done).unwrap();
        }
        assert!(open.memory_bytes() < 2 * MEMORY_BYTES, "{}", open.memory_bytes());
    }
}

/// Without the transactions in which nothing was done: a whole one that is empty is not sent.
fn without_empty(told: &[Told]) -> Vec<Told> {
    let mut kept: Vec<Told> = Vec::new();
    for step in told {
        if step.0 == "commit" && kept.last().is_some_and(|(what, _)| what == "begin") {
            kept.pop();
        } else {
            kept.push(step.clone());
        }
    }
    kept
}

/// The changes, each at its position, with the description that counts for it.
fn by_position(told: &[Told]) -> Vec<(WalPosition, String)> {
    let mut relations: HashMap<String, String> = HashMap::new();
    let mut all = Vec::new();
    for (what, position) in told {
        let Some(position) = position else {
            if let Some((table, columns)) =
                what.strip_prefix("relation ").and_then(|relation| relation.split_once('('))
            {
                relations.insert(table.to_owned(), columns.to_owned());
            }
            continue;
        };
        let table = what.split_once(": ").map_or("", |(table, _)| table);
        all.push((*position, format!("{what} {:?}", relations.get(table))));
    }
    all.sort();
    all
}

async fn compare(seed: u64, transactions: usize, with_messages: bool) -> (usize, usize, u64) {
    let cluster = cluster().await;
    let one = sql(&cluster).await;
    script::tables(&one).await;
    for slot in ["whole", "streamed", "cut", "turns"] {
        create_slot(&one, slot).await;
    }
    let connections = vec![sql(&cluster).await, sql(&cluster).await, sql(&cluster).await];
    let mut dice = Dice(seed);
    let mut lives = Dice(seed ^ 1);
    let lives: Vec<u64> = (0..6).map(|_| 50 + lives.below(3_000)).collect();
    // While they are open; and later, when the server knows how each has ended.
    let mut streamed = Reader::new(&cluster, "streamed", true, false);
    tokio::join!(
        streamed.read(&[]),
        script::run(connections, &mut dice, transactions, with_messages)
    );
    let mut whole = Reader::new(&cluster, "whole", false, false);
    whole.read(&[]).await;
    let mut cut = Reader::new(&cluster, "cut", true, false);
    cut.read(&lives).await;
    let mut turns = Reader::new(&cluster, "turns", true, true);
    turns.read(&lives).await;
    let expected = without_empty(&whole.told);
    for (name, read) in [("streamed", &streamed), ("cut", &cut)] {
        let found = without_empty(&read.told);
        let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
        if let Some(at) = differs {
            let around = at.saturating_sub(6)..at + 4;
            let of = |told: &[Told]| format!("{:#?}", told.get(around.clone()));
            panic!("seed {seed}, {name}: {} instead of {}", of(&found), of(&expected));
        }
        assert_eq!(found.len(), expected.len(), "seed {seed}, {name}");
    }
    let (expected, found) = (by_position(&whole.told), by_position(&turns.told));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found, "seed {seed}, in turns");
    }
    assert_eq!(expected.len(), found.len(), "seed {seed}, in turns");
    for read in [&streamed, &cut, &turns] {
        assert!(read.files.is_empty(), "seed {seed}: files are left");
        assert_eq!(read.open.as_ref().unwrap().open().count(), 0, "seed {seed}: some are left");
    }
    let all = [streamed, cut, turns];
    println!("seed {seed}: refused {:?}", all.each_ref().map(|read| read.refused));
    (
        all.iter().map(|read| read.played).sum(),
        all.iter().map(|read| read.unclear).sum(),
        all.iter().map(|read| read.spooled).sum(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_read_while_open_are_the_same_as_read_whole() {
    let (mut played, mut unclear, mut spooled) = (0, 0, 0);
    for seed in 0..2 {
        let (p, u, s) = compare(seed, 20, false).await;
        (played, unclear, spooled) = (played + p, unclear + u, spooled + s);
    }
    println!("{played} were played, {spooled} bytes spooled");
    assert_eq!(unclear, 0, "there are no messages");
    assert!(played > 100, "{played} were played");
    assert!(spooled > 1 << 20, "{spooled} bytes were spooled");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_with_messages_read_while_open_are_the_same_as_read_whole() {
    let (mut played, mut unclear) = (0, 0);
    for seed in 100..102 {
        let (p, u, _) = compare(seed, 20, true).await;
        (played, unclear) = (played + p, unclear + u);
    }
    println!("{played} were played, {unclear} read whole");
    assert!(played > 100, "{played} were played");
    assert!(unclear > 0, "none had to be read whole");
}

/// What decides that a message's sub-transaction cannot be told: the server does not say which it was.
#[tokio::test]
async fn logical_messages_of_a_sub_transaction_come_with_the_xid_of_the_whole() {
    let cluster = cluster().await;
    let one = sql(&cluster).await;
    source(&one).await;
    let mut reader = Reader::new(&cluster, "s", true, false);
    one.batch_execute(
        "BEGIN; INSERT INTO t VALUES (0, 'top'); SAVEPOINT a;
         SELECT pg_logical_emit_message(true, 'p', 'in a part');
         INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i; RELEASE a; COMMIT",
    )
    .await
    .unwrap();
    let mut stream = reader.connect().await;
    let (mut rows, mut message, mut whole) = (Vec::new(), None, None);
    while message.is_none() || rows.len() < 2 {
        let Frame::XLogData { payload, .. } = stream.next().await.unwrap() else { continue };
        let xid =
            payload.get(1..).and_then(<[u8]>::first_chunk).map(|xid| u32::from_be_bytes(*xid));
        match payload[0] {
            b'S' => whole = xid,
            b'M' => message = xid,
            b'I' if rows.last() != Some(&xid) => rows.push(xid),
            _ => {}
        }
    }
    assert_eq!(rows[0], whole, "the first row is of the transaction itself");
    assert_ne!(rows[1], whole, "the others are of a part");
    assert_eq!(message, whole, "and the message of that part says it is of the whole");
}
