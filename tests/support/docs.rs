//! What tests make of the documentation: it stands between two comments, and is held against what is so.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Holds what stands in a page behind `<!-- mark -->`, up to `<!-- end -->`, against what was made. With
/// `WALHOOK_UPDATE_DOCS` it is written there instead.
pub(crate) fn hold(page: &str, mark: &str, made: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let docs = std::fs::read_to_string(&path)?;
    let (begin, end) = (format!("<!-- {mark} -->\n"), "<!-- end -->");
    let (before, rest) = docs.split_once(&begin).with_context(|| format!("no {mark} in {page}"))?;
    let (shown, after) = rest.split_once(end).with_context(|| format!("{mark} has no end"))?;
    if std::env::var_os("WALHOOK_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{made}{end}{after}"))?;
    } else {
        ensure!(shown == made, "WALHOOK_UPDATE_DOCS=1 writes this to {page}:\n{made}");
    }
    Ok(())
}
