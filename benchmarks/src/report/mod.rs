//! `report.html`: one self-contained page per evaluation.
//!
//! The page holds no script and asks for nothing from anywhere (its content security policy forbids it): style, plots
//! (inline SVG) and thumbnails (data URIs) are inside, videos are links relative to the result folder. All foreign text
//! (instructions, faults, versions) passes the template's escaping or [`escape`]. It stays below [`MAX_BYTES`]: long
//! lists end in a sentence that says what was left out.
//!
//! | module | what it owns |
//! |---|---|
//! | `render` | the page: what the template sees, limits, files |
//! | `figures` | running rate, histograms, strips of outcomes |
//! | `foreign` | text and paths that the page did not write itself |
//! | `words` | numbers as people read them |
//! | `svg` | escaping, axes, and what all plots share |
//! | `plots` | whiskers, outcome strips, histograms, the running rate |

mod figures;
mod foreign;
mod plots;
mod render;
mod svg;
mod words;

pub use plots::{Histogram, OutcomeCell, histogram, outcome_strip, running_rate, whisker};
pub use render::{MAX_BYTES, REPORT_FILE, render_report, write_results};
pub use svg::escape;
