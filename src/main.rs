//! The `walhook` program: parses the command line and runs a command of [`walhook::cli`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
