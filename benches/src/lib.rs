//! What the benchmarks share: the work, the contenders, and how both are measured.

pub mod bars;
pub mod chart;
pub mod contenders;
pub mod jobs;
pub mod long_jobs;
pub mod machine;
pub mod overhead;
pub mod stats;
pub mod work;
