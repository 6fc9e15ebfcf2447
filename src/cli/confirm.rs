//! Asking before what cannot be undone.

use std::io::{IsTerminal, Write};

use super::{CommandResult, Failure, print_remark};
use walhook_core::escape::lines;

/// Says on standard error what `command` is about to do, and asks for the slot's name.
///
/// # Errors
/// When there is no terminal to ask on, or the answer is another.
pub(super) fn confirm(command: &str, plan: &str, slot: &str) -> CommandResult {
    if !std::io::stdin().is_terminal() {
        let error = anyhow::anyhow!("{command} asks, but there is no terminal; add --yes");
        return Err(Failure::Usage(error));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{}\nType the slot's name, {slot}, to go on: ", lines(plan))
        .and_then(|()| stderr.flush())
        .map_err(anyhow::Error::from)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(anyhow::Error::from)?;
    if answer.trim() == slot {
        return Ok(());
    }
    Err(anyhow::anyhow!("not confirmed; nothing was changed").into())
}

/// Asks as [`confirm`] does; with `yes`, and unless the result is JSON, only says what is about to be done.
///
/// # Errors
/// Those of [`confirm`].
pub(super) fn confirm_or_tell(
    command: &str,
    plan: &str,
    slot: &str,
    yes: bool,
    json: bool,
) -> CommandResult {
    if !yes {
        return confirm(command, plan, slot);
    }
    if !json {
        print_remark(plan);
    }
    Ok(())
}

/// Asks whether to go on with what removes rows.
///
/// # Errors
/// When there is no terminal to ask on, or the answer is no.
pub(super) fn confirm_removal(question: &str) -> CommandResult {
    let mut stderr = std::io::stderr();
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow::anyhow!(
            "nobody can be asked here; confirm with --yes"
        )));
    }
    let mut answer = String::new();
    write!(stderr, "{} [y/N] ", lines(question))
        .and_then(|()| stderr.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(anyhow::Error::from)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow::anyhow!("nothing was removed").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_on_unconfirmed_where_nobody_can_be_asked() {
        if std::io::stdin().is_terminal() {
            return;
        }
        for unasked in [
            confirm_removal("Remove 2 dead letters for good?"),
            confirm("recover", "This gives up all.", "walhook"),
            confirm_or_tell("recover", "This gives up all.", "walhook", false, true),
        ] {
            let error = unasked.unwrap_err();
            assert!(matches!(error, Failure::Usage(_)), "{error:?}");
            assert!(error.to_string().contains("--yes"), "{error}");
        }
        confirm_or_tell("recover", "This gives up all.", "walhook", true, true).unwrap();
    }
}
