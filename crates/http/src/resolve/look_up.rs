//! One question to the name servers: for how long it is asked, what is remembered of the answer, and what that says of
//! them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout};

use super::places::Place;
use super::{Found, Inner, Known, QUICK, ResolveError, SILENCE, SILENCE_MAX, SLOW, Silence};
use walhook_process::faults::Fault;

impl Inner {
    /// An error while the name is left alone.
    pub(super) fn check_silence(&self, name: &str) -> Result<(), ResolveError> {
        match self.silent.get(name) {
            Some(silence) if silence.since.elapsed() < silence.lasts => {
                Err(ResolveError::Left(silence.lasts))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Asks, and returns beside the answer the names to ask for where nobody answered.
    pub(super) async fn look_up(
        &self,
        name: &str,
        mut place: Option<Place>,
    ) -> (Result<Arc<[IpAddr]>, ResolveError>, Vec<String>) {
        let mut asked = (self.lookup)(name.to_owned());
        let mut found = timeout(QUICK, &mut asked).await.ok();
        let mut goes_on = true;
        if let Some(place) = &mut place {
            match found {
                Some(Err(ref error))
                    if error.kind() == io::ErrorKind::TimedOut || Fault::of(error).is_some() => {}
                Some(_) => place.answered(),
                // Nobody answered within the time of a quick place.
                None => goes_on = place.slow_down(),
            }
        }
        if found.is_none() && goes_on {
            found = timeout(SLOW, asked).await.ok();
        }
        let doubted = self.note_health(name, found.as_ref());
        (self.remember(name, found), doubted)
    }

    fn remember(
        &self,
        name: &str,
        found: Option<io::Result<Found>>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        match found {
            Some(Ok(Found { addresses, .. })) => {
                let addresses: Arc<[IpAddr]> = addresses.into();
                self.known.insert(name.to_owned(), Known::new(Arc::clone(&addresses)));
                self.silent.invalidate(name);
                Ok(addresses)
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::TimedOut => {
                self.silent.invalidate(name);
                Err(ResolveError::Dns(Arc::new(error)))
            }
            Some(Err(_)) | None => Err(self.note_silence(name)),
        }
    }

    /// What came of a question says of the name servers. Returns the names to ask for, to know more.
    fn note_health(&self, name: &str, found: Option<&io::Result<Found>>) -> Vec<String> {
        let error = match found {
            Some(Ok(Found { by_servers: false, .. })) => return Vec::new(),
            Some(Ok(Found { addresses, .. })) => {
                self.health().answered((!addresses.is_empty()).then_some(name));
                return Vec::new();
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.health().answered(None);
                return Vec::new();
            }
            // They were not asked.
            Some(Err(error))
                if error.kind() == io::ErrorKind::InvalidInput || Fault::of(error).is_some() =>
            {
                return Vec::new();
            }
            Some(Err(error)) => error.to_string(),
            None => "the name servers do not answer".to_owned(),
        };
        self.health().unanswered(name, &error, Instant::now())
    }

    /// Asks for these names, for nothing but to know whether they are answered: few, and seldom.
    pub(super) fn ask_beside(self: &Arc<Self>, names: Vec<String>) {
        for name in names {
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                let found = timeout(QUICK + SLOW, (inner.lookup)(name.clone())).await.ok();
                inner.note_health(&name, found.as_ref());
            });
        }
    }

    fn note_silence(&self, name: &str) -> ResolveError {
        let before = self.silent.get(name).map(|silence| silence.lasts * 2);
        let lasts = before.unwrap_or(SILENCE).min(SILENCE_MAX);
        self.silent.insert(name.to_owned(), Silence { since: Instant::now(), lasts });
        ResolveError::Left(lasts)
    }
}
