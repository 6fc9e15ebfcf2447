//! With a name server of our own.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::task::JoinSet;

use super::*;
use crate::egress::Policy;
use crate::resolve::{Lookup, ResolveError, Resolver};
use walhook_core::event::AccountId;

/// Knows `*.example`, with an address of each family; says that there is nothing else, and nothing at
/// all of names below `silent`; where it is told to fail, it can say of no name what it has. On a thread of its own: it has its turns however much its askers have to do.
struct NameServer {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let fails = Arc::new(AtomicBool::new(false));
        let (count, failing) = (Arc::clone(&asked), Arc::clone(&fails));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
                if bytes == 0 {
                    return;
                }
                count.fetch_add(1, SeqCst);
                if let Some(answer) = answer(&buffer[..bytes], failing.load(SeqCst)) {
                    // Who asked may have gone.
                    let _gone = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, asked, fails, thread: Some(thread) }
    }

    fn system(&self, files: &Files) -> System {
        System::of(&files.hosts, &files.conf, self.address.port())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let told =
            UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(&[], self.address));
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

fn answer(question: &[u8], fails: bool) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(question).unwrap();
    let query = message.queries[0].clone();
    let name = query.name().to_string();
    if name.contains("silent") {
        return None;
    }
    message.metadata.message_type = MessageType::Response;
    let data = if query.query_type() == RecordType::A {
        RData::A(A::new(93, 184, 215, 14))
    } else {
        RData::AAAA(AAAA::new(0x2606, 0, 0, 0, 0, 0, 0, 1))
    };
    if fails || name.contains("lame") {
        message.metadata.response_code = ResponseCode::ServFail;
    } else if name.ends_with(".example.") {
        message.answers.push(Record::from_rdata(query.name().clone(), 60, data));
    } else {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    Some(message.to_vec().unwrap())
}

struct Files {
    hosts: PathBuf,
    conf: PathBuf,
    _dir: tempfile::TempDir,
}

impl Files {
    fn new(hosts: &str, conf: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Self {
            hosts: dir.path().join("hosts"),
            conf: dir.path().join("resolv.conf"),
            _dir: dir,
        };
        fs::write(&files.hosts, hosts).unwrap();
        fs::write(&files.conf, conf).unwrap();
        files
    }
}

const CONF: &str = "nameserver 127.0.0.1\n";

async fn addresses(system: &System, name: &str) -> Result<BTreeSet<String>, io::ErrorKind> {
    let found = system.addresses(name).await.map_err(|error| error.kind())?;
    Ok(found.addresses.iter().map(ToString::to_string).collect())
}

fn lookup(system: System) -> Arc<Lookup> {
    let system = Arc::new(system);
    Arc::new(move |name: String| {
        let system = Arc::clone(&system);
        Box::pin(async move { system.addresses(&name).await })
    })
}

fn set<const N: usize>(addresses: [&str; N]) -> BTreeSet<String> {
    addresses.map(str::to_owned).into()
}

#[tokio::test]
async fn system_resolver_answers_from_hosts_search_domains_and_name_servers() {
    let server = NameServer::start();
    let hosts =
        "127.0.0.1 localhost\n10.1.2.3 Hooks.internal alias # a comment\n::2 six.internal\n";
    let files = Files::new(hosts, "nameserver 127.0.0.1\nsearch b.example c.example\n");
    let system = server.system(&files);
    let both = set(["2606::1", "93.184.215.14"]);
    assert_eq!(addresses(&system, "a.example").await, Ok(both.clone()));
    assert_eq!(addresses(&system, "single").await, Ok(both));
    assert_eq!(
        addresses(&system, "there.is.none").await.unwrap(),
        set(["2606::1", "93.184.215.14"])
    );
    assert!(addresses(&system, "localhost").await.unwrap().contains("127.0.0.1"));
    let asked = server.asked.load(SeqCst);
    assert_eq!(addresses(&system, "hooks.internal").await, Ok(set(["10.1.2.3"])));
    assert_eq!(addresses(&system, "ALIAS").await, Ok(set(["10.1.2.3"])));
    assert_eq!(addresses(&system, "six.internal").await, Ok(set(["::2"])));
    assert_eq!(addresses(&system, "192.0.2.7").await, Ok(set(["192.0.2.7"])));
    let plain = server.system(&Files::new("", CONF));
    assert_eq!(addresses(&plain, "there.is.none").await, Err(io::ErrorKind::NotFound));
    assert!(server.asked.load(SeqCst) > asked);
}

#[tokio::test]
async fn system_resolver_asks_for_names_that_are_no_host_names_too() {
    let server = NameServer::start();
    let files = Files::new("", "nameserver 127.0.0.1\nsearch b.example\n");
    let system = server.system(&files);
    for name in
        ["my_service", "tenant_1.hooks.example", "a_.example", "_x.example", "x-.example", "xn--a"]
    {
        let both = set(["2606::1", "93.184.215.14"]);
        assert_eq!(addresses(&system, name).await, Ok(both), "{name}");
    }
    let resolver = Resolver::new(Arc::default(), lookup(system), Duration::from_secs(10));
    assert_eq!(resolver.own("proxy_1").await.unwrap().len(), 2);
}

#[tokio::test]
async fn system_resolver_reads_the_files_again_after_they_change() {
    let server = NameServer::start();
    let files = Files::new("", CONF);
    let system = server.system(&files);
    assert_eq!(addresses(&system, "later.internal").await, Err(io::ErrorKind::NotFound));
    fs::write(&files.hosts, "10.0.0.9 later.internal\n").unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fs::File::open(&files.hosts).unwrap().set_modified(old).unwrap();
    let look_again = || {
        let mut current = system.current.lock().unwrap();
        current.as_mut().unwrap().looked -= LOOK_AGAIN;
    };
    look_again();
    assert_eq!(addresses(&system, "later.internal").await, Ok(set(["10.0.0.9"])));
}

#[tokio::test]
async fn outage_of_the_name_servers_is_told_from_names_of_others_that_fail() {
    let server = NameServer::start();
    let files = Files::new("10.0.0.9 here.internal\n", CONF);
    let policy = Policy { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Policy::default() };
    let lookup = lookup(server.system(&files));
    let resolver = Resolver::new(Arc::new(policy), lookup, Duration::from_secs(10));
    let ask = async |names: &[&str]| {
        for name in names {
            let _failed = resolver.endpoint(name, &AccountId::new(*name)).await;
        }
    };
    let asked_beside = async |count: usize| {
        while server.asked.load(SeqCst) < count {
            tokio::task::yield_now().await;
        }
    };
    ask(&["a.example", "b.example"]).await;
    // Names whose own servers fail, whatever number: the others are asked for, and are answered.
    let before = server.asked.load(SeqCst);
    ask(&["1.lame", "2.lame", "3.lame"]).await;
    asked_beside(before + 3 * 2 + 2 * 2).await;
    let settled = Instant::now();
    while resolver.trouble().is_some() {
        assert!(settled.elapsed() < Duration::from_secs(30), "names of others that fail are told");
        tokio::task::yield_now().await;
    }

    server.fails.store(true, SeqCst);
    let began = Instant::now();
    ask(&["1.lame", "c.example", "2.lame", "3.lame"]).await;
    while resolver.trouble().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "an outage is not told");
        // What stands in a file is no answer of theirs, nor is what can be no name.
        ask(&["1.lame", "here.internal", "two..dots"]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reason = resolver.trouble().unwrap().reason;
    assert!(reason.ends_with("the name servers say Server Failure"), "{reason}");
    assert!(!reason.contains("lame") && !reason.contains("example"), "{reason}");
    // That there is no such name is an answer.
    server.fails.store(false, SeqCst);
    ask(&["none.absent"]).await;
    assert_eq!(resolver.trouble(), None);
}

#[test]
fn resolv_conf_is_read_as_the_c_library_reads_it() {
    let local = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    let empty = Conf::read("");
    assert_eq!((empty.servers, empty.ndots, empty.attempts), (local.clone(), 1, 2));
    assert_eq!(Conf::read("nameserver nonsense\nnonsense\noptions x y:z ndots:\n").servers, local);
    let conf = Conf::read(
        "# made by hand\ndomain old.example\nnameserver 10.0.0.1 ; first\nnameserver 10.0.0.2\n\
         nameserver ::1\nnameserver 10.0.0.4\nsearch a.example  b.example\n\
         options ndots:99 timeout:0 attempts:9 rotate\n",
    );
    assert_eq!(conf.servers.len(), SERVERS_MAX);
    assert_eq!((conf.ndots, conf.timeout, conf.attempts), (15, Duration::from_secs(1), 5));
    assert_eq!(
        conf.search.iter().map(Name::to_string).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
}

/// Item 17: a thousand accounts whose name servers are silent, with the real resolver and real packets.
#[tokio::test(flavor = "multi_thread")]
async fn system_resolver_answers_others_beside_a_thousand_silent_accounts() {
    const PATIENCE: Duration = Duration::from_secs(10);
    walhook_process::descriptors::raise();
    let server = NameServer::start();
    let lookup = lookup(server.system(&Files::new("", CONF)));
    let resolver = Resolver::new(Arc::default(), lookup, PATIENCE);
    let mut silent = JoinSet::new();
    for n in 0..1000 {
        let resolver = resolver.clone();
        silent.spawn(async move {
            let account = AccountId::new(n.to_string());
            resolver.endpoint(&format!("hooks.{n}.silent"), &account).await.is_err()
        });
    }
    let mut slowest = Duration::ZERO;
    for n in 0..200 {
        let (start, account) = (Instant::now(), AccountId::new(format!("other {n}")));
        let name = format!("{n}.example");
        while let Err(error) = resolver.endpoint(&name, &account).await {
            // On a machine that has too much to do, an answer may not be read within the time of a quick place. That
            // takes the account for silent, and it asks again. Nobody waits for a turn until patience is gone: with
            // threads in getaddrinfo most did.
            let unread = matches!(error, ResolveError::Left(_) | ResolveError::Crowded);
            assert!(unread, "{name}: {error}");
            assert!(start.elapsed() < 6 * PATIENCE, "{name}: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        slowest = slowest.max(start.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The bound of 100 ms is held in virtual time.
    println!("beside 1,000 silent accounts the slowest of 200 other names took {slowest:?}");
    while let Some(is_silent) = silent.join_next().await {
        assert!(is_silent.unwrap());
    }
}
