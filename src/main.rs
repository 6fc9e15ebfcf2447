//! The `walhook` program: parses the command line and runs a command of [`walhook::cli`].

use std::process::ExitCode;

use clap::Parser;
use walhook::cli::{Cli, Failure};
use walhook_core::escape::{lines, one_line};
use walhook_core::redact::redact;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(cli.run());
    // Dropped, the runtime would wait for a name look-up that hangs: those cannot be cancelled.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            let text = redact(&text);
            // What is wrong with the configuration is a list; all else may quote text of rows.
            let text = match failure {
                Failure::Usage(_) => lines(&text),
                Failure::Failed(_) | Failure::Halted(_) => one_line(&text),
            };
            complain(&text);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Says on standard error what went wrong. Where nobody reads that any more, nothing can be said.
fn complain(text: &str) {
    use std::io::Write;
    let _nobody_reads_it = writeln!(std::io::stderr(), "error: {text}");
}
