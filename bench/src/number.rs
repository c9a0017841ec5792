//! A number as the sheet prints it.

/// A number with three significant digits: `7.51 M`, `23 k`, `0.142`. Infinity stands for a rate
/// that was not kept up with.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "not kept up".to_owned(),
        v if v >= 1e6 => format!("{:.2} M", value / 1e6),
        v if v >= 1e4 => format!("{:.0} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_three_digits() {
        let written: Vec<String> =
            [7_512_345.0, 23_456.0, 231.4, 12.34, 1.234, 0.1234].into_iter().map(short).collect();
        assert_eq!(written, ["7.51 M", "23 k", "231", "12.3", "1.23", "0.123"]);
    }
}
