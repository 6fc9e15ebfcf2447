//! What is done to an installation: checks, set-up, teardown, an upgrade of the server.

use crate::control::check::{CheckView, Finding, Verdict};
use crate::control::config::ValidView;
use crate::control::setup::{Did, ScriptView, SetupView, StepView};
use crate::control::teardown::TornDown;
use crate::control::upgrade::finish::{Finished, FinishedView};
use crate::control::upgrade::prepare::{self, Prepared};

use super::{replayable_gap, text};

pub(crate) fn check() -> CheckView {
    let finding = |verdict, what: &str, finding: &str, fix| Finding {
        verdict,
        what: what.into(),
        finding: finding.into(),
        fix,
    };
    let findings = vec![
        finding(Verdict::Pass, "server", "version 18.1", None),
        finding(Verdict::Warn, "max_slot_wal_keep_size", "-1", text("set it to 50GB")),
        finding(Verdict::Fail, "wal_level", "replica", text("set wal_level = logical")),
    ];
    CheckView { failures: 1, findings, warnings: 1 }
}

pub(crate) fn valid() -> ValidView {
    ValidView { rules: Some(2), valid: true }
}

pub(crate) fn setup() -> SetupView {
    let step =
        |step: &str, did, detail: &str| StepView { step: step.into(), did, detail: detail.into() };
    let steps = vec![
        step("state schema walhook", Did::Exists, "24 tables"),
        step("publication walhook", Did::Changed, "public.subscribers added"),
        step("slot walhook", Did::Created, "begins at 0/100"),
    ];
    SetupView { steps }
}

pub(crate) fn script() -> ScriptView {
    ScriptView { sql: "SET search_path = pg_catalog, pg_temp;\n".into() }
}

pub(crate) fn torn_down() -> TornDown {
    let kept = vec!["the schema walhook: it holds other pipelines".to_owned()];
    TornDown { dropped: vec!["slot walhook".to_owned()], kept }
}

pub(crate) fn finished() -> FinishedView {
    let finished = Finished {
        from: "0/100".into(),
        slot_carried: false,
        deferred: 2,
        dead_letters: 1,
        gap: Some(replayable_gap()),
        epoch: 4,
    };
    FinishedView { finished }
}

pub(crate) fn prepared() -> prepare::PreparedView {
    let prepared = Prepared {
        lsn: "0/100".into(),
        server_version: 170_002,
        slots_carried: true,
        deferred: 2,
        dead_letters: 1,
        open_gaps: 1,
        other_slots: vec!["reports".into()],
        next: vec!["stop the server now".into()],
        slots: ["walhook".into(), "walhook_anchor".into()],
    };
    prepare::PreparedView { prepared }
}
