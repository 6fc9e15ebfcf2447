//! Numbers of a page: as few bytes as each needs, and read back with a check each.

/// Why a page cannot be read.
pub(super) type Broken = &'static str;

/// Writes numbers one behind the other, seven bits a byte, the low ones first.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    /// How much `number` is above `before`, which may be less than nothing.
    pub(super) fn step(&mut self, number: i64, before: i64) {
        let step = number.wrapping_sub(before);
        self.number((step.cast_unsigned() << 1) ^ (step >> 63).cast_unsigned());
    }

    pub(super) fn length(&mut self, length: usize) {
        self.number(length as u64);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }
}

/// Reads what [`Writer`] wrote.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, Broken> {
        let (byte, rest) = self.0.split_first().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(*byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, Broken> {
        let mut number = 0u64;
        for place in 0..10 {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if place == 9 && bits > 1 {
                return Err("a number is too large");
            }
            number |= bits << (7 * place);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number is too long")
    }

    /// The number that [`Writer::step`] wrote by its step from `before`.
    pub(super) fn step(&mut self, before: i64) -> Result<i64, Broken> {
        let number = self.number()?;
        let step = (number >> 1).cast_signed() ^ -((number & 1).cast_signed());
        Ok(before.wrapping_add(step))
    }

    /// A number of things of which each takes a byte at least.
    pub(super) fn length(&mut self) -> Result<usize, Broken> {
        let length = usize::try_from(self.number()?).map_err(|_| "a length is too large")?;
        if length > self.0.len() { Err("a length is too large") } else { Ok(length) }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Broken> {
        let length = self.length()?;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| "a text is none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_back_as_they_were_written(numbers: Vec<u64>, steps: Vec<i64>) {
            let mut writer = Writer::default();
            numbers.iter().for_each(|number| writer.number(*number));
            let mut before = 0;
            for step in &steps {
                writer.step(*step, before);
                before = *step;
            }
            let mut reader = Reader(&writer.0);
            for number in numbers {
                prop_assert_eq!(reader.number(), Ok(number));
            }
            let mut before = 0;
            for step in steps {
                before = reader.step(before).unwrap();
                prop_assert_eq!(before, step);
            }
            prop_assert!(reader.0.is_empty());
        }
    }

    #[test]
    fn number_beyond_sixty_four_bits_is_refused() {
        let mut bytes = [0xff; 10];
        bytes[9] = 2;
        assert!(Reader(&bytes).number().is_err());
        assert!(Reader(&[0x80; 11]).number().is_err());
        assert!(Reader(&[0x80]).number().is_err());
    }
}
