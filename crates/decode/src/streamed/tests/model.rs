//! Under generated deeds: what is played is what a naive server knows to be committed, and the descriptions that
//! count are those that it takes as known.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const TRANSACTIONS: usize = 3;
const TABLES: u32 = 3;
const MEMORY_BYTES: usize = 200_000;

#[derive(Debug, Clone)]
enum Deed {
    Row {
        of: usize,
        table: u32,
        bytes: usize,
    },
    Message {
        of: usize,
    },
    Savepoint {
        of: usize,
    },
    Release {
        of: usize,
    },
    Rollback {
        of: usize,
        levels: usize,
    },
    Block {
        of: usize,
    },
    Commit {
        of: usize,
    },
    Abort {
        of: usize,
    },
    /// A table's description changes, for whoever sends a row of it next.
    Alter {
        table: u32,
    },
    Play,
    Disk,
    Reconnect,
}

fn deed() -> impl Strategy<Value = Deed> {
    let of = || 0..TRANSACTIONS;
    prop_oneof![
        12 => (of(), 0..TABLES, prop_oneof![4 => 0usize..200, 1 => 0usize..40_000])
            .prop_map(|(of, table, bytes)| Deed::Row { of, table, bytes }),
        1 => of().prop_map(|of| Deed::Message { of }),
        4 => of().prop_map(|of| Deed::Savepoint { of }),
        2 => of().prop_map(|of| Deed::Release { of }),
        3 => (of(), 1usize..3).prop_map(|(of, levels)| Deed::Rollback { of, levels }),
        5 => of().prop_map(|of| Deed::Block { of }),
        2 => of().prop_map(|of| Deed::Commit { of }),
        1 => of().prop_map(|of| Deed::Abort { of }),
        2 => (0..TABLES).prop_map(|table| Deed::Alter { table }),
        2 => Just(Deed::Play),
        3 => Just(Deed::Disk),
        1 => Just(Deed::Reconnect),
    ]
}

/// What a transaction wrote.
#[derive(Debug, Clone)]
struct Wrote {
    subxid: u32,
    lsn: u64,
    /// `None`: a logical message.
    table: Option<u32>,
    text: String,
}

/// A (sub)transaction that is active.
#[derive(Debug, Default, Clone)]
struct Level {
    xid: Option<u32>,
    /// Those in it that have ended and were not rolled back.
    ended: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Transaction {
    levels: Vec<Level>,
    wrote: Vec<Wrote>,
    /// How much of it was sent in blocks.
    sent: usize,
    /// Whose something was.
    streamed: HashSet<u32>,
}

impl Default for Transaction {
    fn default() -> Self {
        let (wrote, streamed) = Default::default();
        Self { levels: vec![Level::default()], wrote, sent: 0, streamed }
    }
}

/// A table, as the server's output plugin remembers what it sent of it.
#[derive(Debug, Default)]
struct Table {
    version: u32,
    is_known: bool,
    known_in: HashSet<u32>,
}

struct World {
    open: OpenTransactions,
    transactions: Vec<Transaction>,
    tables: BTreeMap<u32, Table>,
    /// The last xid, and the end of the WAL.
    xid: u32,
    at: u64,
    /// The descriptions that count outside of transactions, for the client.
    live: HashMap<u32, u32>,
    /// What is to be played.
    owed: VecDeque<Vec<String>>,
    files: HashMap<FileId, Vec<u8>>,
    unclear: usize,
}

fn description(table: u32, version: u32) -> Vec<u8> {
    [&table.to_be_bytes()[..], b"s\0", format!("{version}").as_bytes(), b"\0d\0\0"].concat()
}

fn row_body(table: u32, version: u32, text: &str) -> Vec<u8> {
    [&table.to_be_bytes()[..], &version.to_be_bytes(), text.as_bytes()].concat()
}

/// Table, version and text of a row that is decoded by what is `known`.
fn read_row(payload: &[u8], known: &HashMap<u32, u32>) -> String {
    let (table, rest) = payload[1..].split_first_chunk().unwrap();
    let (version, text) = rest.split_first_chunk().unwrap();
    let (table, version) = (u32::from_be_bytes(*table), u32::from_be_bytes(*version));
    assert_eq!(known.get(&table), Some(&version), "a row by another description");
    String::from_utf8(text.to_vec()).unwrap()
}

fn learn(payload: &[u8], known: &mut HashMap<u32, u32>) {
    if let Ok(Message::Relation(relation)) = decode(Protocol::V1, payload) {
        known.insert(relation.oid, relation.name.parse().unwrap());
    }
}

impl World {
    fn new() -> Self {
        let settings =
            Settings { memory_bytes: MEMORY_BYTES, spool: true, prefixes: vec!["p".to_owned()] };
        Self {
            open: OpenTransactions::new(settings),
            transactions: vec![Transaction::default(); TRANSACTIONS],
            tables: (0..TABLES).map(|table| (table, Table::default())).collect(),
            xid: u32::MAX - 20,
            at: 1_000,
            live: HashMap::new(),
            owed: VecDeque::new(),
            files: HashMap::new(),
            unclear: 0,
        }
    }

    /// Sends a message that is no commit, as soon as there is room for it.
    fn send(&mut self, at: u64, message: &[u8]) {
        while self.open.room() != Room::Free {
            self.disk();
            if self.open.room() != Room::Free {
                assert!(!self.owed.is_empty(), "no room, and nothing that would make some");
                self.play();
            }
        }
        let taken = self.open.handle(Tick(0), Lsn(at), Payload::Whole(message)).unwrap();
        assert!(matches!(taken, Taken::Live | Taken::Passed | Taken::Kept(_)), "{taken:?}");
        assert!(self.open.memory_bytes() < MEMORY_BYTES + (1 << 17));
    }

    /// Gives an xid to each level that has none.
    fn xid_of(&mut self, of: usize) -> u32 {
        for level in &mut self.transactions[of].levels {
            if level.xid.is_none() {
                self.xid = self.xid.wrapping_add(1);
                level.xid = Some(self.xid);
            }
        }
        self.transactions[of].levels.last().unwrap().xid.unwrap()
    }

    fn write(&mut self, of: usize, table: Option<u32>, bytes: usize) {
        let subxid = self.xid_of(of);
        let begin = self.at;
        self.at += 8;
        // A message stands where its record ends.
        let lsn = if table.is_some() { begin } else { self.at };
        let text = format!("{lsn} {}", "x".repeat(bytes));
        self.transactions[of].wrote.push(Wrote { subxid, lsn, table, text });
    }

    fn describe(&mut self, table: u32, prefix: Option<(u32, u32)>) {
        let known = self.tables.get_mut(&table).unwrap();
        let body = description(table, known.version);
        let (is_new, message) = match prefix {
            Some((xid, subxid)) => (known.known_in.insert(xid), put(b'R', subxid, &body)),
            None => (!std::mem::replace(&mut known.is_known, true), [b"R", &body[..]].concat()),
        };
        if is_new {
            self.send(0, &message);
            if prefix.is_none() {
                learn(&message, &mut self.live);
            }
        }
    }

    /// Sends what was not sent of a transaction that is open.
    fn block(&mut self, of: usize) {
        let transaction = self.transactions[of].clone();
        let Some(xid) = transaction.levels[0].xid else { return };
        self.send(0, &start(xid, !transaction.streamed.contains(&xid)));
        self.transactions[of].streamed.insert(xid);
        for wrote in &transaction.wrote[transaction.sent..] {
            self.transactions[of].streamed.insert(wrote.subxid);
            match wrote.table {
                Some(table) => {
                    self.describe(table, Some((xid, wrote.subxid)));
                    let body = row_body(table, self.tables[&table].version, &wrote.text);
                    self.send(wrote.lsn, &put(b'I', wrote.subxid, &body));
                }
                None => self.send(wrote.lsn, &put(b'M', xid, &logical(wrote.lsn, "p"))),
            }
        }
        self.transactions[of].sent = transaction.wrote.len();
        self.send(0, b"E");
    }

    fn rollback(&mut self, of: usize, levels: usize) {
        let xid = self.transactions[of].levels[0].xid;
        for _ in 0..levels.min(self.transactions[of].levels.len() - 1) {
            let transaction = &mut self.transactions[of];
            let level = transaction.levels.pop().unwrap();
            let gone: Vec<u32> = level.ended.into_iter().chain(level.xid).collect();
            transaction.wrote.retain(|wrote| !gone.contains(&wrote.subxid));
            transaction.sent = transaction.sent.min(transaction.wrote.len());
            let sent: Vec<u32> =
                gone.into_iter().filter(|gone| transaction.streamed.contains(gone)).collect();
            for subxid in sent {
                self.send(0, &abort(xid.unwrap(), subxid));
                self.tables.values_mut().for_each(|table| {
                    table.known_in.remove(&xid.unwrap());
                });
            }
        }
    }

    fn commit(&mut self, of: usize) {
        let xid = self.transactions[of].levels[0].xid;
        let is_streamed = xid.is_some_and(|xid| self.transactions[of].streamed.contains(&xid));
        if is_streamed {
            self.block(of);
        }
        let transaction = std::mem::take(&mut self.transactions[of]);
        self.at += 8;
        if !is_streamed {
            for (table, wrote) in transaction.wrote.iter().filter_map(|w| Some((w.table?, w))) {
                self.describe(table, None);
                let body = row_body(table, self.tables[&table].version, &wrote.text);
                let message = [b"I", &body[..]].concat();
                assert_eq!(read_row(&message, &self.live), wrote.text);
                self.send(wrote.lsn, &message);
            }
            return;
        }
        let message = commit(xid.unwrap(), self.at);
        for table in self.tables.values_mut() {
            table.is_known |= table.known_in.remove(&xid.unwrap());
        }
        match self.open.handle(Tick(0), Lsn(self.at), Payload::Whole(&message)).unwrap() {
            Taken::Committed(committed) => {
                committed.described.iter().for_each(|payload| learn(payload, &mut self.live));
                let owed: Vec<String> = transaction.wrote.into_iter().map(|w| w.text).collect();
                assert_eq!(committed.rows, u64::try_from(owed.len()).unwrap());
                self.owed.push_back(owed);
            }
            Taken::Unclear { .. } => {
                self.unclear += 1;
                // It would be read whole on another connection.
                self.reconnect();
            }
            taken @ (Taken::Live | Taken::Passed | Taken::Kept(_)) => panic!("{taken:?}"),
        }
    }

    fn abort(&mut self, of: usize) {
        let levels = self.transactions[of].levels.len();
        self.rollback(of, levels);
        let transaction = std::mem::take(&mut self.transactions[of]);
        let Some(xid) = transaction.levels[0].xid else { return };
        let gone = transaction.levels[0].ended.iter().copied().chain([xid]);
        for subxid in gone.filter(|gone| transaction.streamed.contains(gone)) {
            self.send(0, &abort(xid, subxid));
        }
        self.tables.values_mut().for_each(|table| {
            table.known_in.remove(&xid);
        });
    }

    fn reconnect(&mut self) {
        self.open.handle_reconnected();
        self.live.clear();
        for transaction in &mut self.transactions {
            transaction.sent = 0;
            transaction.streamed.clear();
        }
        for table in self.tables.values_mut() {
            table.is_known = false;
            table.known_in.clear();
        }
    }

    /// Plays the next transaction, if there is one, to its end.
    fn play(&mut self) {
        let Some(owed) = self.owed.pop_front() else { return };
        let (mut known, mut found) = (HashMap::new(), Vec::new());
        loop {
            match self.open.play().unwrap() {
                Play::Record(record) => match record.payload[0] {
                    b'I' => found.push(read_row(&record.payload, &known)),
                    b'M' => found.push(format!("{} ", record.wal_start.0)),
                    _ => learn(&record.payload, &mut known),
                },
                Play::Wait => self.disk(),
                Play::End => break,
            }
        }
        assert_eq!(found, owed);
    }

    /// Does all that the spool is to.
    fn disk(&mut self) {
        while let Some(order) = self.open.poll_order() {
            let done = match order {
                Order::Write { file, offset, chunks } => {
                    let kept = self.files.entry(file).or_default();
                    kept.truncate(usize::try_from(offset).unwrap());
                    kept.extend(chunks.concat());
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
            self.open.handle_done(done).unwrap();
        }
    }

    fn take(&mut self, deed: Deed) {
        match deed {
            Deed::Row { of, table, bytes } => self.write(of, Some(table), bytes),
            Deed::Message { of } => self.write(of, None, 0),
            Deed::Savepoint { of } => self.transactions[of].levels.push(Level::default()),
            Deed::Release { of } => {
                let levels = &mut self.transactions[of].levels;
                if levels.len() > 1 {
                    let ended = levels.pop().unwrap();
                    let ended = ended.ended.into_iter().chain(ended.xid);
                    levels.last_mut().unwrap().ended.extend(ended);
                }
            }
            Deed::Rollback { of, levels } => self.rollback(of, levels),
            Deed::Block { of } => self.block(of),
            Deed::Commit { of } => self.commit(of),
            Deed::Abort { of } => self.abort(of),
            Deed::Alter { table } => {
                let table = self.tables.get_mut(&table).unwrap();
                *table = Table { version: table.version + 1, ..Table::default() };
            }
            Deed::Play => self.play(),
            Deed::Disk => self.disk(),
            Deed::Reconnect => self.reconnect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn open_transactions_play_what_a_naive_server_committed(deeds in vec(deed(), 0..150)) {
        let mut world = World::new();
        let with_messages = deeds.iter().any(|deed| matches!(deed, Deed::Message { .. }));
        for deed in deeds {
            world.take(deed);
        }
        for of in 0..TRANSACTIONS {
            if of == 0 { world.abort(of) } else { world.commit(of) }
        }
        while !world.owed.is_empty() {
            world.play();
        }
        world.reconnect();
        world.disk();
        prop_assert!(with_messages || world.unclear == 0);
        prop_assert!(world.files.is_empty(), "files are left");
        prop_assert_eq!(world.open.memory_bytes(), 0);
    }

    #[test]
    fn open_transactions_never_panic_on_messages_in_any_order(
        messages in vec((0usize..12, 5u32..9, 5u32..9, vec(any::<u8>(), 0..12)), 0..60),
    ) {
        let mut open = OpenTransactions::new(settings());
        for (kind, xid, subxid, body) in messages {
            let message = match kind {
                0 | 1 => start(xid, kind == 0),
                2 => b"E".to_vec(),
                3 => commit(xid, 100),
                4 => abort(xid, subxid),
                5 => body,
                6 => put(b'M', subxid, &logical(u64::from(xid), "p")),
                7 => put(b'M', subxid, &body),
                8 => put(b'R', subxid, &body),
                _ => put(b'I', subxid, &body),
            };
            if open.handle(Tick(0), Lsn(8), Payload::Whole(&message)).is_err() {
                open.handle_reconnected();
            }
            let _ = open.handle(Tick(0), Lsn(8), Payload::Oversize { head: &message, bytes: 1 << 30 });
        }
        while open.playing().is_some() {
            played(&mut open);
        }
    }
}
