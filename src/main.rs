//! The `walhook` program: parses the command line and runs a command of [`walhook::cli`].

use std::process::ExitCode;

use clap::Parser;
use walhook::cli::{Cli, Failure};
use walhook::server::log;
use walhook_core::escape::{lines, one_line};
use walhook_core::redact::redact;
use walhook_process::faults::Fault;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A build may hold two of them, and whoever asks for the one of the process would panic then.
    let _it_is_the_first = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let fix = Fault::of(&error).map(|fault| format!("; {}", fault.fix()));
            log::complain(
                &format!("cannot start the runtime: {error}{}", fix.unwrap_or_default()),
                1,
            );
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(cli.run());
    // Dropped, the runtime would wait for a name look-up that hangs: those cannot be cancelled.
    runtime.shutdown_background();
    let exit_code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            let text = redact(&text);
            // What is wrong with the configuration is a list; all else may quote text of rows.
            let text = match failure {
                Failure::Usage(_) => lines(&text),
                Failure::Failed(_) | Failure::Halted(_) => one_line(&text),
            };
            log::complain(&text, failure.exit_code());
            ExitCode::from(failure.exit_code())
        }
    };
    log::finish();
    exit_code
}
