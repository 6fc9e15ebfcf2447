//! The cells that are not run, each with the reason why its adversary cannot touch its stage.

use super::adversaries::Adversary as A;
use super::stages::Stage as S;

/// Why there is nothing to measure; `None`: the cell is run.
pub(crate) fn why_untouched(stage: S, adversary: A) -> Option<&'static str> {
    Some(match (stage, adversary) {
        (_, A::Rows) if stage != S::LookUp => {
            "its rows are refused when they are looked up, and go no further"
        }
        (_, A::Receivers) if stage != S::Turns => {
            "it differs from 1xx in what is read of an answer alone, which turns shows"
        }
        (_, A::Rules) if stage != S::Reader => {
            "a rule costs where rows are read; behind it the event is like any other"
        }
        (S::Reader, A::Endpoints) => "one row is read once, however many endpoints it is for",
        (S::Reader, A::Hanging | A::Informational) => {
            "the reader does not know how endpoints answer"
        }
        (S::Reader, A::SilentNames) => "the reader does not know of names",
        (S::LookUp, A::Whale | A::Keys | A::Huge) => {
            "one account is one look-up, however many its rows are, and however large"
        }
        (S::LookUp, A::Informational) => {
            "ten accounts are fewer look-ups than the 300 of hanging; how they answer is not known there"
        }
        (S::LookUp, A::SilentNames) => {
            "a look-up reads URLs and resolves no name; 300 accounts are what hanging is"
        }
        (S::LookUp, A::Unroutable) => "an event without an account asks for no routes",
        (S::Names, A::Whale | A::Keys | A::Huge | A::Whales | A::Informational | A::Hanging) => {
            "its names resolve, once in a while, for all of its requests"
        }
        (S::Names | S::Turns | S::Sockets, A::Unroutable) => {
            "without an endpoint there is no request"
        }
        (S::Sockets, A::Keys | A::Huge) => "a key or a byte takes no socket: it is one whale",
        (S::Refill | S::Drain | S::Replay, A::Unroutable) => {
            "it is a dead letter at once, and nothing of it comes back"
        }
        (S::Drain, A::SilentNames) => "names that stay silent let nothing drain",
        _ => return None,
    })
}
