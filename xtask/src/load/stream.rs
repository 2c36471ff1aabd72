//! Byte streams that can be made and verified at any position, so that every single byte is checked.

/// Bytes before and after a difference in which the bytes found are searched for, to tell loss from repetition.
const SEARCH: u64 = 1 << 20;

/// An endless pseudo-random stream; two seeds give unrelated streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    seed: u64,
}

impl Stream {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// SplitMix64 (public domain, Vigna 2015) as a function of the position: word `index` of the stream.
    fn word(self, index: u64) -> [u8; 8] {
        mix(self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
    }

    /// Fills `out` with the bytes from `position` on.
    pub(super) fn fill(self, position: u64, out: &mut [u8]) {
        let skip = usize::try_from(position % 8).unwrap_or(0);
        let mut index = position / 8;
        let head = out.len().min((8 - skip) % 8);
        let (first, rest) = out.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&self.word(index)[skip..skip + head]);
            index += 1;
        }
        for chunk in rest.chunks_mut(8) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
            index += 1;
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A small source of seeded decisions (SplitMix64 again), so that a failing run can be repeated.
#[derive(Debug, Clone)]
pub(super) struct Dice {
    state: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform in `0..end` (the bias of the remainder does not matter here).
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Log-uniform in `0..=max`: every order of magnitude is equally likely, 0 included.
    pub(super) fn size(&mut self, max: u64) -> u64 {
        let bits = u64::from(64 - max.leading_zeros()) + 1;
        match self.below(bits) {
            0 => 0,
            bit => ((1 << (bit - 1)) + self.below(1 << (bit - 1))).min(max),
        }
    }
}

/// Verifies what arrives against the stream that was sent.
#[derive(Debug)]
pub(super) struct Checker {
    stream: Stream,
    expected: u64,
    position: u64,
    scratch: Vec<u8>,
}

impl Checker {
    /// Expects `expected` bytes of `stream`.
    pub(super) fn new(stream: Stream, expected: u64) -> Self {
        Self { stream, expected, position: 0, scratch: Vec::new() }
    }

    /// Bytes that arrived and were right.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn is_complete(&self) -> bool {
        self.position == self.expected
    }

    /// Checks the next bytes; the error tells the position of the first difference.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let end = self.position + bytes.len() as u64;
        self.scratch.resize(bytes.len(), 0);
        self.stream.fill(self.position, &mut self.scratch);
        if self.scratch != bytes {
            let same = self.scratch.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(self.difference(self.position + same as u64, &bytes[same..]));
        }
        if end > self.expected {
            return Err(format!("{} bytes arrived where {} were sent", end, self.expected));
        }
        self.position = end;
        Ok(())
    }

    /// Says what is wrong at `at`, and where in the stream the bytes found belong.
    fn difference(&self, at: u64, found: &[u8]) -> String {
        let of = self.expected;
        let Some(sample) = found.get(..16) else { return format!("byte {at} of {of} differs") };
        let start = at.saturating_sub(SEARCH);
        let mut window = vec![0; usize::try_from(2 * SEARCH).unwrap_or(0)];
        self.stream.fill(start, &mut window);
        match window.windows(sample.len()).position(|bytes| bytes == sample) {
            Some(offset) => {
                let belongs = start + offset as u64;
                let kind = if belongs > at { "lost or out of order" } else { "repeated" };
                format!("byte {at} of {of} differs: bytes {kind}, those of position {belongs} arrived")
            }
            None => format!("byte {at} of {of} differs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let stream = Stream::new(7);
        let mut whole = vec![0; 1000];
        stream.fill(0, &mut whole);
        for (start, end) in [(0, 1), (1, 3), (3, 8), (7, 9), (8, 16), (5, 997), (13, 13), (999, 1000)] {
            let mut cut = vec![0; end - start];
            stream.fill(start as u64, &mut cut);
            assert_eq!(cut, whole[start..end], "{start}..{end}");
        }
    }

    #[test]
    fn the_checker_names_the_first_difference() {
        let stream = Stream::new(1);
        let mut sent = vec![0; 4096];
        stream.fill(0, &mut sent);
        sent.remove(1000);
        let mut checker = Checker::new(stream, 4096);
        let fault = checker.take(&sent).unwrap_err();
        assert!(fault.starts_with("byte 1000 of 4096 differs: bytes lost"), "{fault}");
    }

    #[test]
    fn sizes_cover_all_magnitudes() {
        let mut dice = Dice::new(3);
        let sizes: Vec<u64> = (0..2000).map(|_| dice.size(4 << 20)).collect();
        assert!(sizes.contains(&0));
        assert!(sizes.iter().any(|&size| size > 2 << 20));
        assert!(sizes.iter().all(|&size| size <= 4 << 20));
    }
}
