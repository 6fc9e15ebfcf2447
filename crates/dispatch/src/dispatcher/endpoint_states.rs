//! The endpoints to which nothing is sent: those that walhook has switched off, and those that an operator has
//! paused. Beside them those that fail.
//!
//! Invariant: an endpoint is one of the two at most. What changes here is stored with the next batch, by whoever
//! changes it.

use std::collections::BTreeMap;

use super::failures::Failures;

use walhook_core::event::EndpointId;
use walhook_core::persist::{DisableEndpoint, PauseEndpoint};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct EndpointStates {
    disabled: BTreeMap<EndpointId, String>,
    /// With since when: microseconds since 1970-01-01 UTC.
    paused: BTreeMap<EndpointId, i64>,
    /// Those that fail: since when, how often, by what.
    pub(super) failing: Failures,
}

impl EndpointStates {
    /// As an earlier leader left them.
    pub(super) fn new(
        disabled: Vec<DisableEndpoint>,
        paused: Vec<PauseEndpoint>,
        failing: Failures,
    ) -> Self {
        Self {
            disabled: disabled.into_iter().map(|d| (d.endpoint, d.reason)).collect(),
            paused: paused.into_iter().map(|p| (p.endpoint, p.since_us)).collect(),
            failing,
        }
    }

    /// Switches it off. False: it is off already.
    pub(super) fn disable(
        &mut self,
        DisableEndpoint { endpoint, reason }: &DisableEndpoint,
    ) -> bool {
        if self.disabled.contains_key(endpoint) {
            return false;
        }
        self.disabled.insert(endpoint.clone(), reason.clone());
        true
    }

    /// Switches it on. False: it was not off.
    pub(super) fn enable(&mut self, endpoint: &EndpointId) -> bool {
        self.disabled.remove(endpoint).is_some()
    }

    /// Pauses it, whether it is off or not.
    pub(super) fn pause(&mut self, endpoint: &EndpointId, since_us: i64) {
        self.disabled.remove(endpoint);
        self.paused.insert(endpoint.clone(), since_us);
    }

    /// Resumes it, and says since when it was paused, where it was.
    pub(super) fn resume(&mut self, endpoint: &EndpointId) -> Option<i64> {
        self.paused.remove(endpoint)
    }

    /// Why it is off, where it is.
    pub(super) fn why_disabled(&self, endpoint: &EndpointId) -> Option<&str> {
        self.disabled.get(endpoint).map(String::as_str)
    }

    /// Whether it is off.
    pub(super) fn is_disabled(&self, endpoint: &EndpointId) -> bool {
        self.disabled.contains_key(endpoint)
    }

    /// Whether it is paused.
    pub(super) fn is_paused(&self, endpoint: &EndpointId) -> bool {
        self.paused.contains_key(endpoint)
    }

    /// Since when it is paused, where it is.
    pub(super) fn paused_since_us(&self, endpoint: &EndpointId) -> Option<i64> {
        self.paused.get(endpoint).copied()
    }

    /// Endpoints that are off, and endpoints that are paused.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.disabled.len(), self.paused.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_off_or_paused_and_never_both() {
        let endpoint = EndpointId::new("7");
        let disable = DisableEndpoint { endpoint: endpoint.clone(), reason: "410".to_owned() };
        let mut states = EndpointStates::new(vec![], vec![], Failures::default());
        assert!(states.disable(&disable) && !states.disable(&disable));
        assert_eq!((states.why_disabled(&endpoint), states.counts()), (Some("410"), (1, 0)));
        states.pause(&endpoint, 5);
        assert_eq!((states.counts(), states.paused_since_us(&endpoint)), ((0, 1), Some(5)));
        assert_eq!((states.resume(&endpoint), states.resume(&endpoint)), (Some(5), None));
        assert!(states.disable(&disable) && states.enable(&endpoint) && !states.enable(&endpoint));
        assert_eq!(states.counts(), (0, 0));
    }
}
