//! The integration tests: one binary, so that it links once. Each test starts a PostgreSQL of its own
//! from the installed binaries, a receiver on real sockets, and the real program.

mod support;

mod shape;
