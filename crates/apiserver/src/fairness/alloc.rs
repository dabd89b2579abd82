//! How the server's seats are shared out: each level gets the same fraction of what it could use, within its bounds.

/// A target below this is taken for it, so that fractions of it can be told.
const LEAST_TARGET: f64 = 0.001;
const EPSILON: f64 = 1e-7;

/// One level's part in the sharing, in seats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// What it could use.
    pub target: f64,
    pub lower: f64,
    pub upper: f64,
}

/// What each gets of `sum` seats, and the fraction of its target that everyone gets whom no bound holds. `None` if the
/// bounds contradict one another or the sum.
pub fn allocate(sum: usize, shares: &[Share]) -> Option<(Vec<f64>, f64)> {
    let sum = sum as f64;
    let targets: Vec<f64> = shares.iter().map(|share| share.target.max(LEAST_TARGET)).collect();
    let sound = |s: &Share| s.lower >= 0.0 && s.target >= s.lower && s.upper >= s.lower;
    let (low, high) = shares.iter().fold((0.0, 0.0), |(l, h), s| (l + s.lower, h + s.upper));
    if !shares.iter().all(sound) || low - sum > EPSILON || sum - high > EPSILON {
        return None;
    }
    let given = |fraction: f64| -> Vec<f64> {
        shares.iter().zip(&targets).map(|(s, target)| (fraction * target).clamp(s.lower, s.upper)).collect()
    };
    // The sum of what is given grows with the fraction, in straight lines between the fractions at which a bound begins
    // or ceases to hold.
    let mut corners: Vec<f64> =
        shares.iter().zip(&targets).flat_map(|(s, target)| [s.lower / target, s.upper / target]).collect();
    corners.sort_by(f64::total_cmp);
    let (mut from, mut reached) = (0.0, low);
    for corner in corners {
        let there: f64 = given(corner).iter().sum();
        if there >= sum {
            let fraction = if there > reached {
                from + (corner - from) * (sum - reached) / (there - reached)
            } else {
                corner
            };
            return Some((given(fraction), fraction));
        }
        (from, reached) = (corner, there);
    }
    Some((given(from), from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(target: f64, lower: f64, upper: f64) -> Share {
        Share { target, lower, upper }
    }

    #[test]
    fn everyone_gets_the_same_fraction_within_his_bounds() {
        let cases: &[(usize, &[Share], &[f64], f64)] = &[
            (30, &[share(10.0, 0.0, 100.0), share(20.0, 0.0, 100.0)], &[10.0, 20.0], 1.0),
            (60, &[share(10.0, 0.0, 100.0), share(20.0, 0.0, 100.0)], &[20.0, 40.0], 2.0),
            // One is held from above, the other gets what is left.
            (60, &[share(10.0, 0.0, 12.0), share(20.0, 0.0, 100.0)], &[12.0, 48.0], 2.4),
            // One is held from below.
            (30, &[share(20.0, 20.0, 100.0), share(20.0, 0.0, 100.0)], &[20.0, 10.0], 0.5),
            // No choice.
            (30, &[share(20.0, 20.0, 40.0), share(10.0, 10.0, 40.0)], &[20.0, 10.0], 1.0),
        ];
        for (sum, shares, expected, fraction) in cases {
            let (given, fair) = allocate(*sum, shares).expect("it is possible");
            for (got, wanted) in given.iter().zip(*expected) {
                assert!((got - wanted).abs() < 1e-6, "{shares:?}: {given:?}");
            }
            assert!((fair - fraction).abs() < 1e-6, "{shares:?}: {fair}");
        }
    }

    #[test]
    fn who_wants_nothing_gets_what_nobody_else_may_have() {
        let (given, _) = allocate(50, &[share(0.0, 0.0, 100.0), share(10.0, 0.0, 20.0)]).expect("possible");
        assert!((given[0] - 30.0).abs() < 1e-6 && (given[1] - 20.0).abs() < 1e-6, "{given:?}");
    }

    #[test]
    fn contradictions_are_told() {
        assert!(allocate(10, &[share(20.0, 20.0, 40.0)]).is_none());
        assert!(allocate(50, &[share(20.0, 0.0, 40.0)]).is_none());
        assert!(allocate(20, &[share(5.0, 10.0, 40.0)]).is_none());
    }
}
