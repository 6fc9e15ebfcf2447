//! A recording replays to the same effects; one that is damaged or cut off is told of, and ends no process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use walhook_simulator::{Options, Wishes, replay, run};

/// A recording of a small run.
fn recording(seed: u64) -> Vec<u8> {
    let options = Options { transactions: 150, accounts: 8, ..Options::default() };
    let wishes = Wishes { record: true, ..Wishes::default() };
    run(seed, &options, &wishes).unwrap().recording
}

/// Another number for each step: the same ones each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }
}

fn lines(recording: &[u8]) -> Vec<&[u8]> {
    recording.split_inclusive(|byte| *byte == b'\n').collect()
}

#[test]
fn simulated_process_replays_to_the_same_effects() {
    let (mut inputs, mut effects) = (0, 0);
    for seed in 0..6 {
        let replayed = replay(&recording(seed)[..]).unwrap();
        assert_eq!(replayed.dispatchers, 1, "seed {seed}");
        inputs += replayed.inputs;
        effects += replayed.effects;
    }
    assert!(inputs > 100 && effects > 100, "{inputs} inputs, {effects} effects");
}

#[test]
fn recording_that_is_cut_off_says_in_which_line() {
    let whole = recording(1);
    let ends: Vec<usize> = lines(&whole).iter().map(|line| line.len()).collect();
    let first = ends[0];
    for at in [1, first / 2, first - 1, first + 1, whole.len() / 2, whole.len() - 1] {
        if whole[at - 1] == b'\n' {
            continue;
        }
        let problem = replay(&whole[..at]).unwrap_err();
        assert!(problem.contains("is cut off after"), "{problem}");
    }
    assert!(replay(&b""[..]).unwrap_err().contains("no dispatcher begins"));
    // Without its end it may be one of a process that was killed.
    let all = lines(&whole);
    let (end, rest) = all.split_last().unwrap();
    assert!(String::from_utf8_lossy(end).contains("ended"));
    assert_eq!(replay(&rest.concat()[..]).unwrap().ended, None);
}

#[test]
fn recording_that_is_damaged_is_an_error_and_no_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    let whole = recording(2);
    let mut numbers = Numbers(1);
    let (mut refused, mut by_dispatcher) = (0, 0);
    for round in 0..300 {
        let mut damaged = whole.clone();
        let all = lines(&whole);
        match round % 5 {
            // A digit is another one.
            0 | 1 => {
                let at = numbers.below(damaged.len());
                let digit = damaged.iter().skip(at).position(u8::is_ascii_digit);
                let Some(digit) = digit else { continue };
                damaged[at + digit] = b'0' + u8::try_from(numbers.below(10)).unwrap();
            }
            // A byte is none.
            2 => {
                let at = numbers.below(damaged.len());
                damaged[at] = u8::try_from(numbers.below(256)).unwrap();
            }
            // A line is missing, or stands there twice.
            3 => {
                let left_out = numbers.below(all.len());
                let kept = all.iter().enumerate().filter(|(at, _)| *at != left_out);
                damaged = kept.flat_map(|(_, line)| line.iter().copied()).collect();
            }
            _ => {
                let twice = numbers.below(all.len());
                let again = all.iter().enumerate();
                let again = again.flat_map(|(at, line)| vec![*line; 1 + usize::from(at == twice)]);
                damaged = again.flatten().copied().collect();
            }
        }
        if let Err(problem) = replay(&damaged[..]) {
            assert!(!problem.is_empty());
            refused += 1;
            by_dispatcher += u32::from(problem.contains("the dispatcher refuses it"));
        }
    }
    assert!(refused > 100 && by_dispatcher > 0, "{refused} were refused, {by_dispatcher} late");
}
