//! The system's name servers, asked without a thread for each question: `getaddrinfo` cannot be
//! cancelled, and a name server that is silent would hold its thread for many seconds.
//!
//! `/etc/hosts` and `/etc/resolv.conf` are read as the C library reads them (hosts(5), resolv.conf(5)):
//! the first three name servers, or the one of this host where none is named; `search`, `domain`,
//! `ndots`, `timeout` and `attempts`. Both are read again after they change. Other sources of
//! nsswitch.conf are not asked.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::time::Instant;

use super::Found;
use walhook_process::faults;

/// Name servers that are asked. Source: resolv.conf(5), `MAXNS`.
const SERVERS_MAX: usize = 3;

/// Domains that are searched. Source: `MAXDNSRCH` of older C libraries; newer ones know no bound.
const SEARCH_MAX: usize = 6;

/// The files are looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The system's resolver.
pub(crate) struct System {
    hosts: PathBuf,
    conf: PathBuf,
    /// Where the name servers listen.
    port: u16,
    current: Mutex<Option<Current>>,
}

/// Made of the files as they stood.
struct Current {
    asked: Arc<Asked>,
    looked: Instant,
    stamps: [Option<SystemTime>; 2],
}

/// Who is asked, in this order.
struct Asked {
    hosts: Hosts,
    resolver: TokioResolver,
}

impl Asked {
    /// Before any domain is searched, as the C library does.
    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let found = [RecordType::A, RecordType::AAAA]
            .map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)));
        let records = found.iter().flatten().flat_map(|lookup| lookup.answers());
        records.filter_map(|record| record.data.ip_addr()).collect()
    }
}

impl System {
    pub(crate) fn new() -> Self {
        Self::of("/etc/hosts", "/etc/resolv.conf", 53)
    }

    pub(super) fn of(hosts: impl Into<PathBuf>, conf: impl Into<PathBuf>, port: u16) -> Self {
        Self { hosts: hosts.into(), conf: conf.into(), port, current: Mutex::default() }
    }

    /// The name's addresses. Can be dropped at any time.
    ///
    /// # Errors
    /// `TimedOut` when no name server answers in time.
    pub(super) async fn addresses(&self, name: &str) -> io::Result<Found> {
        if let Ok(address) = name.parse() {
            return Ok(Found { addresses: vec![address], by_servers: false });
        }
        // A name of the DNS is no host name by RFC 952: `my_service` and `tenant_1.example` may be there.
        let name = Name::from_str_relaxed(name.to_ascii_lowercase())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let asked = self.asked()?;
        let here = asked.in_hosts(&name);
        if !here.is_empty() {
            return Ok(Found { addresses: here, by_servers: false });
        }
        let found = asked.resolver.lookup_ip(name).await.map_err(told)?;
        Ok(Found { addresses: found.iter().collect(), by_servers: true })
    }

    fn asked(&self) -> io::Result<Arc<Asked>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &mut *current {
            if current.looked.elapsed() < LOOK_AGAIN {
                return Ok(Arc::clone(&current.asked));
            }
            current.looked = Instant::now();
            if current.stamps == self.stamps() {
                return Ok(Arc::clone(&current.asked));
            }
        }
        let stamps = self.stamps();
        let asked = Arc::new(self.build()?);
        let made = Current { asked: Arc::clone(&asked), looked: Instant::now(), stamps };
        *current = Some(made);
        Ok(asked)
    }

    fn stamps(&self) -> [Option<SystemTime>; 2] {
        let stamp = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        [stamp(&self.hosts), stamp(&self.conf)]
    }

    fn build(&self) -> io::Result<Asked> {
        // A file that is not there is as good as an empty one; one that we cannot open just now is not.
        let conf = match fs::read_to_string(&self.conf) {
            Err(error) if faults::note(&error).is_some() => return Err(error),
            conf => Conf::read(&conf.unwrap_or_default()),
        };
        let servers = conf.servers.iter().map(|ip| {
            let mut server = NameServerConfig::udp_and_tcp(*ip);
            server.connections.iter_mut().for_each(|connection| connection.port = self.port);
            server
        });
        let config = ResolverConfig::from_parts(None, conf.search, servers.collect());
        let mut options = ResolverOpts::default();
        options.ndots = conf.ndots;
        options.timeout = conf.timeout;
        options.attempts = conf.attempts;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // What is known, and for how long, is our own business.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(config, provider)
            .with_options(options)
            .build()
            .map_err(io::Error::other)?;
        let mut hosts = Hosts::default();
        match fs::File::open(&self.hosts) {
            Ok(file) => hosts.read_hosts_conf(file)?,
            Err(error) if faults::note(&error).is_some() => return Err(error),
            Err(_) => {}
        }
        Ok(Asked { hosts, resolver })
    }
}

/// In words for an operator; what a name server sent is not quoted.
fn told(error: NetError) -> io::Error {
    if let NetError::Timeout = error {
        return io::Error::new(io::ErrorKind::TimedOut, "the name servers do not answer");
    }
    if let NetError::Io(error) = &error
        && let Some(code) = error.raw_os_error()
    {
        return io::Error::from_raw_os_error(code);
    }
    let code = if let NetError::Dns(DnsError::NoRecordsFound(none)) = &error {
        none.response_code
    } else if let NetError::Dns(DnsError::ResponseCode(code)) = &error {
        *code
    } else {
        return io::Error::other(error);
    };
    if code == ResponseCode::NXDomain {
        return io::Error::new(io::ErrorKind::NotFound, "there is no such name");
    }
    if code == ResponseCode::NoError {
        return io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    }
    io::Error::other(format!("the name servers say {code}"))
}

/// What `/etc/resolv.conf` says. What cannot be read is passed over, as the C library does.
#[derive(Debug, PartialEq)]
struct Conf {
    servers: Vec<IpAddr>,
    search: Vec<Name>,
    ndots: usize,
    timeout: Duration,
    attempts: usize,
}

impl Conf {
    fn read(text: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.servers.extend(words.next().and_then(|ip| ip.parse::<IpAddr>().ok()));
                }
                // The last of them counts.
                Some("search" | "domain") => {
                    let names = words.filter_map(|name| Name::from_str_relaxed(name).ok());
                    conf.search = names.take(SEARCH_MAX).collect();
                }
                Some("options") => words.for_each(|option| conf.option(option)),
                Some(_) | None => {}
            }
        }
        conf.servers.truncate(SERVERS_MAX);
        if conf.servers.is_empty() {
            conf.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        conf
    }

    /// Bounded as the C library bounds them.
    fn option(&mut self, option: &str) {
        let Some((name, Ok(value))) =
            option.split_once(':').map(|(name, value)| (name, value.parse::<u32>()))
        else {
            return;
        };
        match name {
            "ndots" => self.ndots = usize::try_from(value.min(15)).unwrap_or(1),
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30).into()),
            "attempts" => self.attempts = usize::try_from(value.clamp(1, 5)).unwrap_or(2),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
