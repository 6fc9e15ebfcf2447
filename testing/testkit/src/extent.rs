//! How much the tests try.

/// Whether there is time for long tests: `make test-long` has it, `make test` does not.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("WALHOOK_TEST_LONG").is_some()
}
