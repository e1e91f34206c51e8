//! What a failure does to the run.

use std::fmt;
use std::str::FromStr;

/// What to do when a task fails, that is, when its function returns `Err` or panics.
///
/// | policy | yields | logs | then |
/// |---|---|---|---|
/// | [`Raise`](Self::Raise) | the `Err`, and nothing after it | – | no new task starts; running ones are waited for |
/// | [`Tolerate(n)`](Self::Tolerate) | each `Err` | `warn!` each | as `Raise` at failure `n + 1` |
/// | [`TolerateRate`](Self::TolerateRate) | each `Err` | `warn!` each | as `Raise`, once too many of the last tasks failed |
/// | [`Log`](Self::Log) | each `Err` | `error!` each, when it is delivered | continues |
/// | [`Ignore`](Self::Ignore) | each `Err` | – | continues |
///
/// When a failure stops the run, running tasks can [see it](crate::CancellationToken::current) and return early.
///
/// A policy can be parsed from a command line or a file:
///
/// ```
/// use futureproof::ErrorPolicy;
///
/// assert_eq!("log".parse(), Ok(ErrorPolicy::Log));
/// assert_eq!("tolerate:10".parse(), Ok(ErrorPolicy::Tolerate(10)));
/// assert_eq!(ErrorPolicy::Tolerate(10).to_string(), "tolerate:10");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorPolicy {
    /// Stops the run at the first failure. The default.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let mut run = (0..1_000_000u32).futureproof(Raise).map_tasks(|n| if *n < 5 { Ok(*n) } else { Err("too big") });
    /// let failure = run.find_map(Result::err).expect("the sixth item fails");
    /// assert!(failure.input() >= &5);
    /// assert!(run.next().is_none());
    /// ```
    #[default]
    Raise,
    /// Logs every failure at `error!` when it is delivered, and continues.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let run = (0..10u32).futureproof(Log).map_tasks(|n| if n % 2 == 0 { Ok(()) } else { Err("odd") });
    /// assert_eq!(run.filter(|task| task.is_err()).count(), 5);
    /// ```
    Log,
    /// Delivers failures like any other result, and continues.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let run = (0..10u32).futureproof(Ignore).map_tasks(|n| if n % 2 == 0 { Ok(()) } else { Err("odd") });
    /// assert_eq!(run.flatten().count(), 5); // the failures dropped
    /// ```
    Ignore,
    /// Logs the first `n` failures and continues; failure `n + 1` stops the run.
    ///
    /// The level is `warn!`. Failure `n + 1` is logged as well. `Tolerate(0)` stops at the first failure, as `Raise`
    /// does, but logs it.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let run = (0..).futureproof(Tolerate(3)).map_tasks(|n: &u32| if n % 2 == 0 { Ok(()) } else { Err("odd") });
    /// assert_eq!(run.filter(|task| task.is_err()).count(), 4);
    /// ```
    Tolerate(u64),
    /// Logs failures and continues; stops the run once more than `failures` of the last `window` tasks failed.
    ///
    /// The level is `warn!`. Tasks count in the order in which they end, as in a circuit breaker with a sliding window. At
    /// the beginning of a run, the window is the tasks so far.
    ///
    /// A `window` of 0, or one that is not larger than `failures`, never stops the run.
    ///
    /// ```
    /// use futureproof::{ErrorPolicy, prelude::*};
    ///
    /// // One in twenty fails, and from 500 on, all of them.
    /// let call = |n: &u32| if n % 20 == 0 || *n >= 500 { Err("no answer") } else { Ok(*n) };
    /// let policy = ErrorPolicy::TolerateRate { failures: 10, window: 100 };
    /// let mut run = (0..100_000u32).futureproof(policy).map_tasks(call);
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.ending(), Some(futureproof::Ending::Failed));
    /// ```
    TolerateRate {
        /// How many may fail. An attempt that is retried is no failure of its task.
        failures: u32,
        /// Of how many tasks.
        window: u32,
    },
}

impl ErrorPolicy {
    /// How many failures do not stop the run; `None` for any number.
    pub(crate) fn tolerated(self) -> Option<u64> {
        match self {
            Self::Raise => Some(0),
            Self::Tolerate(n) => Some(n),
            Self::Log | Self::Ignore | Self::TolerateRate { .. } => None,
        }
    }

    /// Whether failures can stop the run.
    pub(crate) fn can_stop(self) -> bool {
        matches!(self, Self::TolerateRate { .. }) || self.tolerated().is_some()
    }

    /// The level at which a delivered failure is logged; `None` for no log.
    pub(crate) fn log_level(self) -> Option<log::Level> {
        match self {
            Self::Log => Some(log::Level::Error),
            Self::Tolerate(_) | Self::TolerateRate { .. } => Some(log::Level::Warn),
            Self::Raise | Self::Ignore => None,
        }
    }
}

impl fmt::Display for ErrorPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raise => f.write_str("raise"),
            Self::Log => f.write_str("log"),
            Self::Ignore => f.write_str("ignore"),
            Self::Tolerate(n) => write!(f, "tolerate:{n}"),
            Self::TolerateRate { failures, window } => write!(f, "tolerate:{failures}/{window}"),
        }
    }
}

/// The error of parsing an [`ErrorPolicy`] from a string.
///
/// ```
/// let error = "explode".parse::<futureproof::ErrorPolicy>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "unknown error policy \"explode\": expected raise, log, ignore, tolerate:N (N failures) or tolerate:N/M (N of the last M tasks)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown error policy {text:?}: expected raise, log, ignore, tolerate:N (N failures) or tolerate:N/M (N of the last M tasks)"
)]
pub struct ParseErrorPolicyError {
    text: String,
}

impl FromStr for ErrorPolicy {
    type Err = ParseErrorPolicyError;

    /// Parses `raise`, `log`, `ignore`, `tolerate:N` or `tolerate:N/M`, in upper or lower case.
    ///
    /// # Errors
    ///
    /// If the string is anything else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        match lower.as_str() {
            "raise" => return Ok(Self::Raise),
            "log" => return Ok(Self::Log),
            "ignore" => return Ok(Self::Ignore),
            _ => {}
        }
        let budget = lower.strip_prefix("tolerate:");
        let rate = budget.and_then(|budget| budget.split_once('/'));
        let rate = rate.and_then(|(failures, window)| {
            Some(Self::TolerateRate {
                failures: failures.parse().ok()?,
                window: window.parse().ok()?,
            })
        });
        let count = budget.and_then(|count| count.parse().ok());
        rate.or(count.map(Self::Tolerate))
            .ok_or_else(|| ParseErrorPolicyError {
                text: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_from_str_agree() {
        for policy in [
            ErrorPolicy::Raise,
            ErrorPolicy::Log,
            ErrorPolicy::Ignore,
            ErrorPolicy::Tolerate(0),
            ErrorPolicy::Tolerate(u64::MAX),
            ErrorPolicy::TolerateRate {
                failures: 5,
                window: u32::MAX,
            },
        ] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(policy.to_string().to_uppercase().parse(), Ok(policy));
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        for text in [
            "",
            "raises",
            "tolerate",
            "tolerate:",
            "tolerate:-1",
            "tolerate:x",
            "tolerate:99999999999999999999",
            "tolerate:5/",
            "tolerate:/5",
            "tolerate:5/x",
        ] {
            let error = text.parse::<ErrorPolicy>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            for known in ["raise", "log", "ignore", "tolerate:N"] {
                assert!(error.contains(known), "{error}");
            }
        }
    }

    #[test]
    fn default_is_raise() {
        assert_eq!(ErrorPolicy::default(), ErrorPolicy::Raise);
    }
}
