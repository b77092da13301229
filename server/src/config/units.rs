//! Durations, sizes and processors as people write them: `10m`, `512MiB`, `1.5`.

use std::{fmt, str::FromStr, time::Duration};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// A length of time in whole milliseconds, such as `45s`, `1h30m` or `250ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// Units from the largest; printing takes the first that divides, reading wants them in this order.
const PERIOD_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a duration: write 45s, 10m, 1h30m or 250ms");
        let mut rest = text.trim();
        let mut total: u64 = 0;
        let mut largest = u64::MAX;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, after) = split_number(rest).ok_or_else(wrong)?;
            let letters = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            let factor = PERIOD_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?
                .1;
            if factor >= largest {
                return Err(wrong());
            }
            largest = factor;
            let part = number.checked_mul(factor).ok_or_else(wrong)?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = after;
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        // Days are read but not printed: 24h says what 1d says, and compares with 2h at a glance.
        let (unit, factor) = PERIOD_UNITS[1..]
            .iter()
            .find(|(_, factor)| millis.is_multiple_of(*factor))
            .unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", millis / factor)
    }
}

/// A number of bytes, such as `512MiB` or `4GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Units from the largest of their kind; printing uses the binary ones.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl Size {
    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The bytes as a length in memory.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a size: write 512MiB, 4GiB or 64KiB");
        let (number, unit) = split_number(text.trim()).ok_or_else(wrong)?;
        let factor = SIZE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit.trim_start()))
            .ok_or_else(wrong)?
            .1;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZE_UNITS[..4]
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Processors in thousandths, such as `1`, `0.5` or `1.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus {
    /// Thousandths of one processor.
    pub millis: u32,
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a number of processors: write 1, 2 or 0.5");
        let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        let millis = whole.checked_mul(1000).and_then(|n| n.checked_add(fraction));
        millis
            .filter(|n| *n > 0)
            .map(|millis| Self { millis })
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.millis / 1000, self.millis % 1000);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:03}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// Leading digits and what follows them.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn printed_periods_read_back(millis in 0..10_u64.pow(13)) {
            let period = Period(Duration::from_millis(millis));
            prop_assert_eq!(period.to_string().parse(), Ok(period));
        }

        #[test]
        fn printed_sizes_read_back(bytes: u64, shift in 0_u32..40) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn printed_cpus_read_back(millis in 1..4_000_000_u32) {
            let cpus = Cpus { millis };
            prop_assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }

        #[test]
        fn no_text_makes_a_reader_panic(text: String) {
            drop((text.parse::<Period>(), text.parse::<Size>(), text.parse::<Cpus>()));
        }
    }

    #[test]
    fn people_write_them_in_these_ways() {
        let period = |text: &str| text.parse::<Period>().map(|p| p.0.as_millis());
        assert_eq!(period("1h30m"), Ok(5_400_000));
        assert_eq!(period("1d"), Ok(86_400_000));
        assert_eq!("1d".parse::<Period>().unwrap().to_string(), "24h");
        for text in [
            "",
            "10",
            "m",
            "10 m",
            "30m1h",
            "1m1m",
            "1.5h",
            "-1s",
            "99999999999999d",
        ] {
            assert!(period(text).is_err(), "{text}");
        }
        let size = |text: &str| text.parse::<Size>().map(Size::bytes);
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1 gib"), Ok(1 << 30));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        for text in ["", "12", "MiB", "1XB", "1.5GiB", "-1B", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        let cpus = |text: &str| text.parse::<Cpus>().map(|c| c.millis);
        assert_eq!(cpus("0.5"), Ok(500));
        for text in ["", "0", "0.0", ".5", "1.", "1.2345", "one", "99999999"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }
}
