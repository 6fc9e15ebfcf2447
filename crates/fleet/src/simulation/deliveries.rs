//! What is to be delivered, whoever leads: what is stored of it, and how often its endpoint took it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use walhook_core::attempt::Asked;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, Event, Operation, RowKeys};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};

/// One delivery, by its number.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Which pipeline's.
    pub(super) of: usize,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) event: Arc<Event>,
    pub(super) asked: Option<Asked>,
    stored: bool,
    /// Requests of it that its endpoint took, by number.
    taken: Vec<u32>,
    /// The leader itself has sent it, or gave it up, or its worker is gone: it may be sent twice.
    pub(super) excused: bool,
}

#[derive(Debug, Default)]
pub(super) struct Deliveries {
    all: BTreeMap<u64, Wanted>,
}

impl Deliveries {
    /// What is committed from here on has a number from here on.
    pub(super) fn end(&self) -> Lsn {
        Lsn(u64::try_from(self.all.len()).unwrap() + 1)
    }

    /// One more, of an event of its own.
    pub(super) fn add(&mut self, of: usize, endpoint: &Arc<Endpoint>, bytes: usize) -> u64 {
        let number = self.end().0;
        let position =
            WalPosition { commit_lsn: Lsn(number), change_lsn: Lsn(number), relation: 1, n: 0 };
        let position = Position::Wal(position);
        let event = Event {
            id: EventId::derive(1, &position, "t", 0),
            position,
            event_type: "t".into(),
            account: AccountId::new("1"),
            operation: Operation::Insert,
            commit_time_us: 0,
            keys: RowKeys::new(),
            row: Bytes::from(vec![b'1'; bytes]),
        };
        self.put(of, number, endpoint, Arc::new(event), None)
    }

    /// One more, on an operator's wish, of the event of another.
    pub(super) fn replay(&mut self, again: u64) -> u64 {
        let number = self.end().0;
        let Wanted { of, endpoint, event, .. } = &self.all[&again];
        let of = *of;
        let (endpoint, event) = (Arc::clone(endpoint), Arc::clone(event));
        let replay = ReplayId(i64::try_from(number).unwrap());
        self.put(of, number, &endpoint, event, Some(Asked::Replay(replay)))
    }

    fn put(
        &mut self,
        of: usize,
        number: u64,
        endpoint: &Arc<Endpoint>,
        event: Arc<Event>,
        asked: Option<Asked>,
    ) -> u64 {
        let endpoint = Arc::clone(endpoint);
        let wanted =
            Wanted { of, endpoint, event, asked, stored: false, taken: Vec::new(), excused: false };
        self.all.insert(number, wanted);
        number
    }

    pub(super) fn get(&self, number: u64) -> &Wanted {
        &self.all[&number]
    }

    pub(super) fn excuse(&mut self, number: u64) {
        self.all.get_mut(&number).unwrap().excused = true;
    }

    /// Its endpoint has taken it, with this request.
    pub(super) fn taken(&mut self, number: u64, run: u32) {
        self.all.get_mut(&number).unwrap().taken.push(run);
    }

    pub(super) fn was_taken_by(&self, number: u64, run: u32) -> bool {
        self.all[&number].taken.contains(&run)
    }

    pub(super) fn store(&mut self, number: u64) {
        self.all.get_mut(&number).unwrap().stored = true;
    }

    /// What a new leader has to send.
    pub(super) fn not_stored(&self, of: usize) -> impl Iterator<Item = u64> + '_ {
        let wanted = self.all.iter().filter(move |(_, wanted)| wanted.of == of && !wanted.stored);
        wanted.map(|(number, _)| *number)
    }

    /// How many were sent more than once, and how many of those for no reason that there may be.
    pub(super) fn repeated(&self) -> (u64, Vec<u64>) {
        let repeated = self.all.iter().filter(|(_, wanted)| wanted.taken.len() > 1);
        let count = u64::try_from(repeated.clone().count()).unwrap();
        (count, repeated.filter(|(_, wanted)| !wanted.excused).map(|(n, _)| *n).collect())
    }
}
