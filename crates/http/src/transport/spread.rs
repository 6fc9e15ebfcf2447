//! Numbers that follow each other, spread evenly.

/// The golden ratio: of all numbers the one whose multiples are spread most evenly, however few they are, and also
/// each second or third one alone.
const GOLDEN: u32 = 0x9e37_79b9;

/// Where the number comes to lie below `below`.
pub(super) fn spread(number: u32, below: u32) -> u32 {
    let place = (u64::from(number.wrapping_mul(GOLDEN)) * u64::from(below)) >> 32;
    u32::try_from(place).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_spread_evenly() {
        for (first, step) in [(0, 1), (77, 1), (u32::MAX - 50, 1), (0, 2), (5, 8), (9, 100)] {
            let mut tenths = [0; 10];
            for n in 0..100 {
                let place = spread(first.wrapping_add(step * n), 10);
                tenths[place as usize] += 1;
            }
            assert!(tenths.iter().all(|found| (6..=14).contains(found)), "{step}: {tenths:?}");
        }
    }
}
