//! Median and spread: a handful of rounds on a shared machine has outliers, and no mean that one should publish.

/// Of the rounds of one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The middle one; between two, their mean.
    pub(crate) median: f64,
    /// The lowest.
    pub(crate) lowest: f64,
    /// The highest.
    pub(crate) highest: f64,
}

impl Spread {
    /// `None` without figures, or if one of them is no number.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        if sorted.iter().any(|figure| !figure.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(*sorted.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            lowest: *sorted.first()?,
            highest: *sorted.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        let of = |figures: &[f64]| Spread::of(figures.iter().copied());
        let spread = |median, lowest, highest| {
            Some(Spread {
                median,
                lowest,
                highest,
            })
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), spread(2.0, 1.0, 3.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), spread(2.5, 1.0, 4.0));
        assert_eq!(of(&[7.0]), spread(7.0, 7.0, 7.0));
    }

    #[test]
    fn nothing_and_no_number_have_no_spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([1.0, f64::NAN]), None);
        assert_eq!(Spread::of([f64::INFINITY]), None);
    }
}
