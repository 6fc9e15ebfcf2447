//! Sizes for people.

/// A size for a person: `12.3 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    UNITS.iter().find(|(size, _)| n >= *size).map_or_else(
        || format!("{n} B"),
        |(size, unit)| {
            let tenths = n % size * 10 / size;
            format!("{}.{tenths} {unit}", n / size)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_with_their_unit() {
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "17179869183.9 GiB");
    }
}
