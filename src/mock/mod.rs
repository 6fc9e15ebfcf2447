//! The receiver for tests and the demo.
