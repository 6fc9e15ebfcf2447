//! The spool's files, on a real disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::streamed::{Payload, Play, Settings, Taken};

const XID: u32 = 7;
const ROW: &[u8] = &[b'x'; 8_000];

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &XID.to_be_bytes(), body].concat()
}

/// Takes so many rows of an open transaction, and lets the spool write what it is to.
async fn receive(spool: &mut Spool, rows: usize) -> Result<OpenTransactions, SpoolFailed> {
    let prefixes = Vec::new();
    let settings = Settings { memory_bytes: 1 << 20, spool: true, prefixes };
    let mut transactions = OpenTransactions::new(settings);
    let mut take = |at, message: Vec<u8>| {
        let taken = transactions.handle(Tick(0), Lsn(at), Payload::Whole(&message));
        taken.map(|taken| matches!(taken, Taken::Kept(_))).unwrap()
    };
    take(0, message(b'S', &[1]));
    for row in 0..rows {
        let at = u64::try_from(row).unwrap() + 1;
        assert!(take(at, message(b'I', &[&at.to_be_bytes(), ROW].concat())));
    }
    take(0, b"E".to_vec());
    work(spool, &mut transactions).await?;
    Ok(transactions)
}

/// Lets the spool do all that it is to.
async fn work(spool: &mut Spool, transactions: &mut OpenTransactions) -> Result<(), SpoolFailed> {
    loop {
        spool.take_order(transactions);
        if spool.busy.is_none() {
            return Ok(());
        }
        if let Some(done) = spool.done().await? {
            transactions.handle_done(done).unwrap();
        }
    }
}

/// Commits the transaction and plays it: the positions of its rows.
async fn play(spool: &mut Spool, transactions: &mut OpenTransactions) -> Vec<u64> {
    let lsns = [9_000_000u64.to_be_bytes(), 9_000_008u64.to_be_bytes(), 0u64.to_be_bytes()];
    let commit = message(b'c', &[&[0][..], &lsns.concat()].concat());
    let taken = transactions.handle(Tick(0), Lsn(0), Payload::Whole(&commit)).unwrap();
    assert!(matches!(taken, Taken::Committed(_)));
    let mut played = Vec::new();
    loop {
        match transactions.play().unwrap() {
            Play::Record(record) => {
                let expected = [&b"I"[..], &record.wal_start.0.to_be_bytes(), ROW].concat();
                assert_eq!(record.payload, expected);
                played.push(record.wal_start.0);
            }
            Play::Wait => work(spool, transactions).await.unwrap(),
            Play::End => return played,
        }
    }
}

#[tokio::test]
async fn spool_gives_back_what_it_was_given_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("made/for/it");
    let mut spool = Spool::open(&at, 1 << 30).await.unwrap();
    assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o700);
    let mut transactions = receive(&mut spool, 1_000).await.unwrap();
    assert!(transactions.memory_bytes() < 1 << 19, "{}", transactions.memory_bytes());
    assert!(transactions.spooled_bytes() > 7_000_000, "{}", transactions.spooled_bytes());
    assert_eq!(spool.written_bytes(), transactions.spooled_bytes());
    let files = names(&at);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(at.join(&files[0])).unwrap().permissions().mode() & 0o777, 0o600);
    let played = play(&mut spool, &mut transactions).await;
    assert_eq!(played, (1..=1_000).collect::<Vec<_>>());
    work(&mut spool, &mut transactions).await.unwrap();
    assert_eq!(names(&at), Vec::<String>::new());
    let _open = receive(&mut spool, 1_000).await.unwrap();
    assert_eq!(names(&at).len(), 1);
    drop(spool);
    assert_eq!(names(&at), Vec::<String>::new());
}

#[tokio::test]
async fn spool_removes_what_dead_processes_left_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("walhook-spool-1-1"), "left").unwrap();
    fs::write(at.join("of somebody else"), "kept").unwrap();
    fs::create_dir(at.join("walhook-spool-directory")).unwrap();
    let mut alive = Spool::open(at, 1 << 30).await.unwrap();
    let mut transactions = receive(&mut alive, 1_000).await.unwrap();
    let mut before = names(at);
    assert_eq!(before.len(), 3, "{before:?}");
    // Another one in the same directory leaves alone what is in use.
    let mut other = Spool::open(at, 1 << 30).await.unwrap();
    let mut after = names(at);
    before.sort();
    after.sort();
    assert_eq!(before, after);
    let _open = receive(&mut other, 1_000).await.unwrap();
    assert_eq!(names(at).len(), 4);
    assert_eq!(play(&mut alive, &mut transactions).await.len(), 1_000);
}

#[tokio::test]
async fn spool_that_reaches_its_bound_says_so_and_what_was_to_be_written_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), 3 << 20).await.unwrap();
    let failed = receive(&mut spool, 1_000).await.unwrap_err();
    assert!(matches!(failed, SpoolFailed::Full { .. }), "{failed}");
    assert!(failed.to_string().contains("source.spool_max"), "{failed}");
    assert!(spool.written_bytes() <= 3 << 20);
    let mut transactions = receive(&mut spool, 10).await.unwrap();
    assert_eq!(play(&mut spool, &mut transactions).await.len(), 10);
}

#[tokio::test]
async fn spool_that_cannot_be_written_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a file");
    fs::write(&file, "").unwrap();
    let failed = Spool::open(&file, 1 << 30).await.unwrap_err();
    assert!(matches!(failed, SpoolFailed::Write { .. }), "{failed}");
    assert!(failed.to_string().ends_with("it is no directory"), "{failed}");
    let failed = Spool::open(Path::new("/proc/spool"), 1 << 30).await.unwrap_err();
    assert!(matches!(failed, SpoolFailed::Write { .. }), "{failed}");
}

#[tokio::test]
async fn spool_gives_disk_back_when_a_part_is_rolled_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), 12 << 20).await.unwrap();
    let mut transactions = receive(&mut spool, 100).await.unwrap();
    // 80 MB that are written and rolled back, in parts of a transaction, within 12 MB of disk.
    for part in 0..10 {
        for row in 0..1_000 {
            let start = message(b'S', &[0]);
            let body = [&u64::to_be_bytes(row), ROW].concat();
            let subxid = XID + 1 + part;
            let insert = [&b"I"[..], &subxid.to_be_bytes(), &body].concat();
            for message in [start, insert, b"E".to_vec()] {
                let at = Lsn(1_000 + row);
                transactions.handle(Tick(0), at, Payload::Whole(&message)).unwrap();
            }
            work(&mut spool, &mut transactions).await.unwrap();
        }
        let abort = message(b'A', &(XID + 1 + part).to_be_bytes());
        transactions.handle(Tick(0), Lsn(0), Payload::Whole(&abort)).unwrap();
    }
    assert!(transactions.counts().aborted_bytes > 80_000_000);
    assert_eq!(play(&mut spool, &mut transactions).await, (1..=100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn spool_that_does_not_answer_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), 1 << 20).await.unwrap();
    let files = spool.files.take().unwrap();
    let (answer, hangs) = std::sync::mpsc::channel::<()>();
    let task = spawn_blocking(move || {
        let _ = hangs.recv();
        Finished { files, written_bytes: 0, done: Ok(None) }
    });
    spool.busy = Some(Busy { task, until: Instant::now() + ANSWER_TIMEOUT });
    tokio::time::advance(ANSWER_TIMEOUT).await;
    let failed = spool.done().await.unwrap_err();
    assert!(matches!(failed, SpoolFailed::Silent { .. }), "{failed}");
    assert!(failed.to_string().ends_with("has not answered within 10s"), "{failed}");
    drop(answer);
}
