//! Quantities as users write them: `512m` of memory, `1.5` CPUs, `30s`.

use std::time::Duration;

/// Bytes from `1g`, `512m`, `64k`, `1024`, with Docker's meaning: the units are powers of 1024, in either
/// case, and a trailing `b` or `ib` changes nothing. (The `bytesize` crate reads `512m` as 512,000,000.)
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write a number with k, m, g or t, for example 512m");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes >= 1.0 && bytes < (1u64 << 60) as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Thousandths of a CPU from `2`, `0.5`, `1.25`.
pub fn milli_cpus(text: &str) -> Result<u64, String> {
    let cpus: f64 =
        text.parse().map_err(|_| format!("`{text}` is not a number of CPUs; write for example 0.5 or 2"))?;
    // 10 ms is the least quota that the kernel takes per 100 ms period without rounding up (cgroup-v2: 1 ms).
    if (0.01..=4096.0).contains(&cpus) {
        Ok((cpus * 1000.0).round() as u64)
    } else {
        Err(format!("`{text}` CPUs can't be given; the least is 0.01"))
    }
}

/// A count of at least one.
pub fn count(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is not a number of at least 1"))
}

/// A limit, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Max,
    At(u64),
}

impl Bound {
    /// `max`, as the kernel's own files have it, or what `quantity` reads.
    pub fn parse(text: &str, quantity: fn(&str) -> Result<u64, String>) -> Result<Self, String> {
        if text == "max" { Ok(Self::Max) } else { quantity(text).map(Self::At) }
    }

    pub fn limit(self) -> Option<u64> {
        match self {
            Self::Max => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// A span of time from `30s`, `5min`, `100ms`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a time; write for example 30s or 5min"))
}

/// Parts in a million from `10%`, `0.5%`; a bare number is meant in percent, too.
pub fn percent(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a share; write a number above 0 and up to 100, for example 10%");
    let number: f64 = text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| wrong())?;
    let parts = (number * 10_000.0).round();
    if (1.0..=1_000_000.0).contains(&parts) { Ok(parts as u32) } else { Err(wrong()) }
}

/// Bits a second from `1mbit`, `500kbit`, `1.5gbit`, as tc(8) writes them: the units are powers of 1000.
pub fn bits(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not a rate; write a number with bit, kbit, mbit or gbit, for example 1mbit");
    let lower = text.to_ascii_lowercase();
    let number = lower.strip_suffix("bit").ok_or_else(wrong)?;
    let scales = [('k', 1e3), ('m', 1e6), ('g', 1e9)];
    let scaled = scales.iter().find_map(|(unit, scale)| Some((number.strip_suffix(*unit)?, *scale)));
    let (number, scale) = scaled.unwrap_or((number, 1.0));
    let bits = number.parse::<f64>().map_err(|_| wrong())? * scale;
    // Below a byte a second nothing at all would pass.
    if (8.0..=1e12).contains(&bits) { Ok(bits as u64) } else { Err(wrong()) }
}

/// Bits a second as [`bits`] reads them, exactly.
pub fn human_bits(bits: u64) -> String {
    let units = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1000, "kbit")];
    let (scale, unit) =
        units.into_iter().find(|(scale, _)| bits.is_multiple_of(*scale)).unwrap_or((1, "bit"));
    format!("{}{unit}", bits / scale)
}

/// Bytes as people read them: `512M`, `1.5G`.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P"];
    let power = (bytes.max(1).ilog2() / 10).min(5);
    let scaled = bytes as f64 / (1u64 << (10 * power)) as f64;
    let text =
        if scaled < 10.0 && scaled.fract() > 0.05 { format!("{scaled:.1}") } else { format!("{scaled:.0}") };
    format!("{text}{}", units[power as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_dockers_meaning() {
        for (text, want) in [
            ("512m", 512 << 20),
            ("1g", 1 << 30),
            ("1.5G", 3 << 29),
            ("64KiB", 65536),
            ("100", 100),
            ("2gb", 2 << 30),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for bad in ["", "m", "1x", "-1", "0", "1e99", "nan", "1.2.3g"] {
            assert!(bytes(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }

    #[test]
    fn shares_and_rates() {
        assert_eq!((percent("10%"), percent("0.5"), percent("100%")), (Ok(100_000), Ok(5000), Ok(1_000_000)));
        for bad in ["0%", "101%", "", "%", "x%", "-1%", "nan%", "0.00001%"] {
            assert!(percent(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
        let rates = [("1mbit", 1_000_000), ("1.5Gbit", 1_500_000_000), ("500kbit", 500_000), ("64bit", 64)];
        for (text, want) in rates {
            assert_eq!(bits(text), Ok(want), "{text}");
            assert_eq!(bits(&human_bits(want)), Ok(want), "{text}");
        }
        for bad in ["1m", "mbit", "0bit", "1mbps", "-1kbit", "", "1e30gbit"] {
            assert!(bits(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }

    #[test]
    fn cpus_and_times() {
        assert_eq!(milli_cpus("0.5"), Ok(500));
        assert!(milli_cpus("0").is_err() && milli_cpus("inf").is_err() && milli_cpus("x").is_err());
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert!(duration("soon").is_err());
        assert_eq!((count("3"), count("0").is_err(), count("-1").is_err()), (Ok(3), true, true));
        assert_eq!(Bound::parse("max", bytes).unwrap().limit(), None);
        assert_eq!(Bound::parse("1k", bytes), Ok(Bound::At(1024)));
        assert!(Bound::parse("maximum", bytes).is_err());
    }

    #[test]
    fn bytes_for_people() {
        for (n, text) in [(0, "0B"), (1023, "1023B"), (1 << 20, "1M"), (3 << 29, "1.5G"), (134 << 20, "134M")]
        {
            assert_eq!(human_bytes(n), text);
        }
    }
}
