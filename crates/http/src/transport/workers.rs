//! Threads of their own for requests.
//!
//! What receivers send is decrypted and parsed here, so that whatever they send, the stream's reader, the
//! dispatcher and the admin server find the operating system's next free core and not the end of a queue.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// The threads, as many as there are cores. Dropped, they end by themselves.
#[derive(Debug)]
pub(super) struct Workers(Option<Runtime>, Handle);

impl Workers {
    /// Starts them, with a task of their own.
    pub(super) fn start(task: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().thread_name("walhook-send").enable_all().build()?;
        // It ends with them.
        runtime.spawn(task);
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // A plain drop waits for name look-ups that hang, and may not happen within a task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
