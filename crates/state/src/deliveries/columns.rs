//! Lines as a page holds them: column by column, and compressed as one, since neighbours are alike. What of an event's id
//! is a hash stands before that as it is: nothing makes it shorter, and to look for what might takes the most time.
//!
//! ```text
//! data     = version (2) ++ lines ++ hash (10)* ++ deflate(columns)
//! columns  = types ++ accounts ++ endpoints ++ queues ++ column*
//! types    = count ++ text*          (accounts and endpoints likewise)
//! queues   = count ++ (account ++ endpoint)*      by their places above
//! ```
//!
//! Numbers are as short as they can be ([`super::numbers`]). Times and positions stand as steps from the line before;
//! an event's id as the step of its time from the commit's. Waits keep their seven highest bits, and so are right to
//! within 2%.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::codes;
use super::numbers::{Broken, Reader, Writer};
use walhook_core::attempt::Asked;
use walhook_core::delivery_log::Entry;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::position::EventId;
use walhook_core::waits::{Cause, Waits};

const VERSION: u8 = 2;

/// Most of what compression saves comes of the first levels, and most of what it costs of the others.
const LEVEL: Compression = Compression::new(2);

/// So many bytes are decoded at most, and so many lines: far above what a page is made of.
const PLAIN_MAX: u64 = 64 << 20;
const LINES_MAX: usize = 1 << 17;

/// Of an event's id, which has sixteen, behind its time.
const HASH_BYTES: usize = 10;
const TIME_BYTES: usize = 16 - HASH_BYTES;

/// Words of one kind, numbered in the order in which they came.
#[derive(Debug)]
struct Words<K>(BTreeMap<K, u64>, Vec<K>);

impl<K: Ord + Clone> Words<K> {
    fn new() -> Self {
        Self(BTreeMap::new(), Vec::new())
    }

    fn number(&mut self, word: K) -> u64 {
        let next = self.1.len() as u64;
        let words = &mut self.1;
        *self.0.entry(word).or_insert_with_key(|word| {
            words.push(word.clone());
            next
        })
    }
}

/// Encodes lines.
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let (mut types, mut accounts) = (Words::new(), Words::new());
    let (mut endpoints, mut queues) = (Words::new(), Words::new());
    let mut places = Vec::with_capacity(entries.len());
    for entry in entries {
        let account = accounts.number(entry.account.as_str());
        let endpoint = endpoints.number(entry.endpoint.as_str());
        places.push((types.number(&*entry.event_type), queues.number((account, endpoint))));
    }
    let mut head = Writer(Vec::with_capacity(64 + entries.len() * 32));
    head.byte(VERSION);
    head.length(entries.len());
    for entry in entries {
        let [_, _, _, _, _, _, hash @ ..]: [u8; TIME_BYTES + HASH_BYTES] =
            entry.event.bits().to_be_bytes();
        head.0.extend_from_slice(&hash);
    }
    let mut to = Writer(Vec::with_capacity(64 + entries.len() * 40));
    for texts in [&types.1, &accounts.1, &endpoints.1] {
        to.length(texts.len());
        texts.iter().for_each(|text| to.text(text));
    }
    to.length(queues.1.len());
    for (account, endpoint) in &queues.1 {
        to.number(*account);
        to.number(*endpoint);
    }
    places.iter().for_each(|(of_type, _)| to.number(*of_type));
    places.iter().for_each(|(_, queue)| to.number(*queue));
    write_columns(&mut to, entries);
    let mut encoder = DeflateEncoder::new(head.0, LEVEL);
    match encoder.write_all(&to.0).and_then(|()| encoder.finish()) {
        Ok(data) => data,
        Err(error) => panic!("a page cannot be compressed in memory: {error}"),
    }
}

fn write_columns(to: &mut Writer, entries: &[Entry]) {
    let mut before = 0;
    for entry in entries {
        to.step(entry.committed_us, before);
        before = entry.committed_us;
    }
    before = 0;
    for entry in entries {
        let lsn = entry.commit_lsn.0.cast_signed();
        to.step(lsn, before);
        before = lsn;
    }
    for entry in entries {
        to.step(entry.event.commit_ms().cast_signed(), entry.committed_us.div_euclid(1_000));
    }
    before = 0;
    for entry in entries {
        to.step(entry.at_us, before);
        before = entry.at_us;
    }
    entries.iter().for_each(|entry| to.byte(codes::of_what(entry.what)));
    entries.iter().for_each(|entry| to.number(u64::from(entry.attempt)));
    entries.iter().for_each(|entry| to.number(entry.status.map_or(0, |s| u64::from(s) + 1)));
    entries.iter().for_each(|entry| to.byte(codes::of_failure(entry.failure)));
    entries.iter().for_each(|entry| to.number(entry.elapsed_us));
    write_waits(to, entries);
    entries.iter().for_each(|entry| to.text(&entry.excerpt));
    for entry in entries {
        let (kind, ids) = match entry.asked {
            None => (0, [0, 0]),
            Some(Asked::Replay(replay)) => (1, [replay.0, 0]),
            Some(Asked::Retry { dead_letter, job }) => (2, [dead_letter.0, job.0]),
        };
        to.byte(kind);
        ids.iter().take(usize::from(kind)).for_each(|id| to.step(*id, 0));
    }
}

/// Which causes held is one number a line, of a bit each; how long stands cause by cause.
fn write_waits(to: &mut Writer, entries: &[Entry]) {
    for entry in entries {
        to.number(entry.waits.iter().fold(0, |bits, (cause, _)| bits | bit(cause)));
    }
    for cause in codes::causes() {
        let held = entries.iter().map(|entry| entry.waits.us(cause));
        held.filter(|held_us| *held_us > 0).for_each(|held_us| to.number(coarse(held_us)));
    }
}

/// The bit that says that a cause held.
fn bit(cause: Cause) -> u64 {
    1 << codes::of_cause(cause)
}

/// Bits that are kept of a wait.
const KEPT: u32 = 7;

/// The number of a wait among those that are told apart.
fn coarse(us: u64) -> u64 {
    let beyond = (u64::BITS - us.leading_zeros()).saturating_sub(KEPT);
    if beyond == 0 {
        return us;
    }
    // The highest bit is always set, and counts as one more.
    u64::from(beyond) * (1 << (KEPT - 1)) + (us >> beyond)
}

/// The least wait that has this number; `None`: none has.
fn fine(number: u64) -> Option<u64> {
    const HALF: u64 = 1 << (KEPT - 1);
    if number < 2 * HALF {
        return Some(number);
    }
    let beyond = number / HALF - 1;
    (beyond <= u64::from(u64::BITS - KEPT)).then(|| (HALF + number % HALF) << beyond)
}

/// A wait as a page tells of it.
#[cfg(test)]
pub(super) fn rounded(us: u64) -> u64 {
    fine(coarse(us)).unwrap()
}

/// Decodes lines.
///
/// # Errors
/// It is none that [`encode`] wrote.
pub(super) fn decode(data: &[u8]) -> Result<Vec<Entry>, String> {
    let (version, packed) = data.split_first().ok_or("it is empty")?;
    if *version != VERSION {
        return Err(format!("it has version {version}; this walhook reads version {VERSION}"));
    }
    let mut packed = Reader(packed);
    let lines = packed.length()?;
    if lines > LINES_MAX {
        return Err("it has too many lines".to_owned());
    }
    let hashes = packed.bytes(lines * HASH_BYTES)?;
    let mut plain = Vec::new();
    DeflateDecoder::new(packed.0)
        .take(PLAIN_MAX)
        .read_to_end(&mut plain)
        .map_err(|error| error.to_string())?;
    Ok(read(&mut Reader(&plain), hashes)?)
}

fn read(from: &mut Reader<'_>, hashes: &[u8]) -> Result<Vec<Entry>, Broken> {
    let lines = hashes.len() / HASH_BYTES;
    let types: Vec<Arc<str>> = words(from)?.into_iter().map(Arc::from).collect();
    let accounts: Vec<AccountId> = words(from)?.into_iter().map(AccountId::new).collect();
    let endpoints: Vec<EndpointId> = words(from)?.into_iter().map(EndpointId::new).collect();
    let count = from.length()?;
    let queues =
        column(count, || Ok((one(&accounts, from.number()?)?, one(&endpoints, from.number()?)?)))?;
    let types = column(lines, || one(&types, from.number()?))?;
    let queues = column(lines, || one(&queues, from.number()?))?;
    let committed = steps(from, lines)?;
    let lsns = steps(from, lines)?;
    let events = events(from, hashes, &committed)?;
    let ats = steps(from, lines)?;
    let whats = column(lines, || codes::what(from.byte()?).ok_or("it has an end that is unknown"))?;
    let attempts = column(lines, || narrow::<u32>(from.number()?))?;
    let statuses = column(lines, || match from.number()? {
        0 => Ok(None),
        status => narrow::<u16>(status - 1).map(Some),
    })?;
    let failures =
        column(lines, || codes::failure(from.byte()?).ok_or("it has a failure that is unknown"))?;
    let elapsed = column(lines, || from.number())?;
    let waits = read_waits(from, lines)?;
    let excerpts = column(lines, || from.text().map(str::to_owned))?;
    let asked = column(lines, || asked(from))?;
    if !from.0.is_empty() {
        return Err("something is left behind its lines");
    }
    let mut types = types.into_iter();
    let mut queues = queues.into_iter();
    let mut committed = committed.into_iter().zip(lsns);
    let mut ats = ats.into_iter().zip(whats);
    let mut answers = attempts.into_iter().zip(statuses).zip(failures).zip(elapsed);
    let mut rest = waits.into_iter().zip(excerpts).zip(asked);
    let lines = events.into_iter().map_while(|event| {
        let (account, endpoint) = queues.next()?;
        let (committed_us, lsn) = committed.next()?;
        let (at_us, what) = ats.next()?;
        let (((attempt, status), failure), elapsed_us) = answers.next()?;
        let ((waits, excerpt), asked) = rest.next()?;
        Some(Entry {
            event,
            event_type: types.next()?,
            account,
            endpoint,
            commit_lsn: Lsn(lsn.cast_unsigned()),
            committed_us,
            at_us,
            attempt,
            what,
            status,
            failure,
            elapsed_us,
            waits,
            excerpt,
            asked,
        })
    });
    Ok(lines.collect())
}

fn column<T>(count: usize, mut next: impl FnMut() -> Result<T, Broken>) -> Result<Vec<T>, Broken> {
    (0..count).map(|_| next()).collect()
}

/// A column of steps, each from the number before.
fn steps(from: &mut Reader<'_>, lines: usize) -> Result<Vec<i64>, Broken> {
    let mut before = 0;
    column(lines, || {
        before = from.step(before)?;
        Ok(before)
    })
}

fn events(from: &mut Reader<'_>, hashes: &[u8], committed: &[i64]) -> Result<Vec<EventId>, Broken> {
    let hashes = hashes.chunks_exact(HASH_BYTES).zip(committed);
    let event = |(hash, commit_us): (&[u8], &i64)| {
        let millis = from.step(commit_us.div_euclid(1_000))?;
        let hash = hash.iter().fold(0u128, |all, byte| all << 8 | u128::from(*byte));
        let millis = u128::from(millis.cast_unsigned() & 0xffff_ffff_ffff);
        Ok(EventId::from_bits(millis << (8 * HASH_BYTES) | hash))
    };
    hashes.map(event).collect()
}

fn words<'a>(from: &mut Reader<'a>) -> Result<Vec<&'a str>, Broken> {
    let count = from.length()?;
    column(count, || from.text())
}

fn one<T: Clone>(of: &[T], place: u64) -> Result<T, Broken> {
    let place = usize::try_from(place).ok().and_then(|place| of.get(place));
    place.cloned().ok_or("it names what it does not hold")
}

fn narrow<T: TryFrom<u64>>(number: u64) -> Result<T, Broken> {
    number.try_into().map_err(|_| "a number is too large")
}

fn read_waits(from: &mut Reader<'_>, lines: usize) -> Result<Vec<Waits>, Broken> {
    let held = column(lines, || from.number())?;
    let known = codes::causes().fold(0, |bits, cause| bits | bit(cause));
    if held.iter().any(|bits| bits & !known > 0) {
        return Err("it has a cause that is unknown");
    }
    let mut waits = vec![Waits::default(); lines];
    for cause in codes::causes() {
        for (waits, bits) in waits.iter_mut().zip(&held) {
            if bits & bit(cause) > 0 {
                waits.add_us(cause, fine(from.number()?).ok_or("a wait is too long")?);
            }
        }
    }
    Ok(waits)
}

fn asked(from: &mut Reader<'_>) -> Result<Option<Asked>, Broken> {
    Ok(match from.byte()? {
        0 => None,
        1 => Some(Asked::Replay(ReplayId(from.step(0)?))),
        2 => Some(Asked::Retry {
            dead_letter: DeadLetterId(from.step(0)?),
            job: JobId(from.step(0)?),
        }),
        _ => return Err("it has a wish that is unknown"),
    })
}

#[cfg(test)]
mod tests;
