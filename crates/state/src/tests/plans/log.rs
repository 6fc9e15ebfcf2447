//! What a server's `auto_explain` logs: each statement's plan as it was carried out, and what it read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::super::fixture::Fixture;

/// A statement that was carried out.
#[derive(Debug)]
pub(super) struct Plan {
    /// The session's `application_name` then.
    pub(super) step: String,
    /// The statement.
    pub(super) sql: String,
    /// Its nodes, and by what each finds its rows; without values.
    pub(super) shape: String,
    /// Rows that its scans of tables looked at.
    pub(super) rows: f64,
    /// Pages that these took, beyond what so many rows one by one are worth.
    pub(super) pages: f64,
}

/// A role whose statements are logged. In `postgresql.conf` they would be the test's own too.
pub(super) const ROLE: &str = "CREATE ROLE recorded SUPERUSER LOGIN;
    ALTER ROLE recorded SET session_preload_libraries = 'auto_explain';
    ALTER ROLE recorded SET auto_explain.log_min_duration = 0;
    ALTER ROLE recorded SET auto_explain.log_analyze = on;
    ALTER ROLE recorded SET auto_explain.log_timing = off;
    ALTER ROLE recorded SET auto_explain.log_buffers = on;
    ALTER ROLE recorded SET auto_explain.log_format = json;";

/// The log since it was read last.
pub(super) struct Log {
    read: usize,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { read: 0 }
    }

    /// The statements since.
    pub(super) fn plans(&mut self, fixture: &Fixture) -> Vec<Plan> {
        let log = std::fs::read(fixture.cluster.data().with_file_name("log")).unwrap();
        let text = String::from_utf8_lossy(&log[self.read..]).into_owned();
        self.read = log.len();
        let mut plans = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if !line.ends_with("plan:") {
                continue;
            }
            let step = line.split('|').next().unwrap().to_owned();
            let mut json = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                json.push_str(line);
            }
            plans.push(Plan::read(step, &serde_json::from_str(&json).unwrap()));
        }
        plans
    }
}

impl Plan {
    fn read(step: String, json: &Value) -> Self {
        let sql = json["Query Text"].as_str().unwrap().to_owned();
        let mut plan = Self { step, sql, shape: String::new(), rows: 0.0, pages: 0.0 };
        plan.shape = plan.visit(&json["Plan"], 0);
        plan
    }

    /// Its scans of tables alone, in any order: which side of a join of whole tables goes first does not
    /// matter.
    pub(super) fn scans(&self) -> String {
        let mut scans: Vec<&str> =
            self.shape.lines().map(str::trim).filter(|line| line.contains("Scan ")).collect();
        scans.sort_unstable();
        scans.join("\n")
    }

    /// Adds up what the node and those below it read, and returns their shape.
    fn visit(&mut self, node: &Value, depth: usize) -> String {
        let text = |name: &str| node[name].as_str().unwrap_or_default();
        let below: &[Value] = node["Plans"].as_array().map_or(&[], Vec::as_slice);
        let kind = text("Node Type");
        if !text("Relation Name").is_empty() && kind != "ModifyTable" {
            self.count(node, below);
        }
        // A node that only keeps what is below it stands there or not.
        let depth = if kind == "Materialize" { depth } else { depth + 1 };
        let shape = |part: &Value| (part["Parent Relationship"].clone(), self.visit(part, depth));
        let (mut asked, inputs): (Vec<_>, Vec<_>) =
            below.iter().map(shape).partition(|(how, _)| how == "SubPlan" || how == "InitPlan");
        // What is asked for each row is asked in any order.
        asked.sort_by(|a, b| a.1.cmp(&b.1));
        let below = inputs.into_iter().chain(asked).map(|(_, shape)| shape).collect::<String>();
        if kind == "Materialize" {
            return below;
        }
        let by = [text("Index Cond"), text("TID Cond")].concat();
        let parts = [kind, text("Relation Name"), text("Index Name"), &without_values(&by)];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}{}\n{below}", "  ".repeat(depth), parts.join(" "))
    }

    /// Adds up what a scan of a table read.
    fn count(&mut self, scan: &Value, below: &[Value]) {
        let number = |node: &Value, name: &str| node[name].as_f64().unwrap_or_default();
        let hits =
            |node: &Value| number(node, "Shared Hit Blocks") + number(node, "Shared Read Blocks");
        let loops = number(scan, "Actual Loops");
        let removed = ["Rows Removed by Filter", "Rows Removed by Index Recheck"];
        let removed: f64 = removed.iter().map(|name| number(scan, name)).sum();
        let rows = (number(scan, "Actual Rows") + removed) * loops;
        self.rows += rows;
        let own = hits(scan) - below.iter().map(hits).sum::<f64>();
        // Down the index, the row, and some dead ones before it.
        self.pages += (own - 12.0 * loops - 4.0 * rows).max(0.0);
    }
}

/// A condition with its texts and numbers left out: those of one run are not those of another.
fn without_values(condition: &str) -> String {
    let outside = condition.split('\'').step_by(2).collect::<Vec<_>>().join("?");
    let mut shape = String::new();
    for character in outside.chars() {
        match character {
            '0'..='9' if shape.ends_with(['#', '$']) => {}
            '0'..='9' => shape.push('#'),
            _ => shape.push(character),
        }
    }
    shape
}

/// What was seen of each statement: its shapes, each with where it was seen first.
pub(super) type Shapes = BTreeMap<(String, String), BTreeMap<String, String>>;
