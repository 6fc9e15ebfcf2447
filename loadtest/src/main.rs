//! Load scenarios.

fn main() {}
