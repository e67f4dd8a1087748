//! Charts as SVG, enough for a benchmark's page and no more: bars (one per measurement, dots for the single runs), and
//! histograms on one scale, to be compared.

use std::fmt::Write as _;

/// One bar: the median, with the runs it is the median of.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Bar {
    /// What was measured.
    pub label: String,
    /// All runs, in `unit`.
    pub runs: Vec<f64>,
}

const WIDTH: f64 = 760.0;
const LABEL: f64 = 240.0;
const ROW: f64 = 34.0;
const TOP: f64 = 48.0;

/// The median; of an even number of values the mean of the middle two, of none zero.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// A chart of horizontal bars, all from zero and on one scale.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let longest = bars.iter().flat_map(|bar| bar.runs.iter().copied()).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABEL - 90.0) / longest;
    let height = TOP + ROW * bars.len() as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let (y, value) = (TOP + ROW * row as f64, median(&bar.runs));
        let (length, middle) = (value * scale, y + ROW / 2.0 - 5.0);
        let _ = writeln!(svg, "<text x=\"12\" y=\"{:.1}\">{}</text>", middle + 4.0, escaped(&bar.label));
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"#4c78a8\"/>",
            ROW - 10.0
        );
        for run in &bar.runs {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"3\" fill=\"#f58518\"/>",
                LABEL + run * scale
            );
        }
        let end = LABEL + bar.runs.iter().copied().fold(value, f64::max) * scale;
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{value:.2} {}</text>", end + 8.0, middle + 4.0, escaped(unit));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Room for one histogram.
const PANEL: f64 = 92.0;
/// Bins of every histogram.
const BINS: usize = 40;

/// Histograms below each other, all on one scale from zero; a line marks each one's median.
pub fn histograms(title: &str, unit: &str, rows: &[Bar]) -> String {
    let longest = rows.iter().flat_map(|row| row.runs.iter().copied()).fold(f64::MIN_POSITIVE, f64::max);
    let (bin, scale) = (longest / BINS as f64, (WIDTH - LABEL - 40.0) / longest);
    let height = TOP + PANEL * rows.len() as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (number, row) in rows.iter().enumerate() {
        let floor = TOP + PANEL * (number + 1) as f64 - 24.0;
        let mut counts = [0_usize; BINS];
        for run in &row.runs {
            counts[((run / bin) as usize).min(BINS - 1)] += 1;
        }
        let highest = counts.iter().copied().max().unwrap_or(1).max(1);
        let _ = writeln!(svg, "<text x=\"12\" y=\"{:.1}\">{}</text>", floor - 20.0, escaped(&row.label));
        for (place, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let tall = (PANEL - 34.0) * *count as f64 / highest as f64;
            let (x, y) = (LABEL + place as f64 * bin * scale, floor - tall);
            let wide = (bin * scale - 1.0).max(1.0);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{tall:.1}\" fill=\"#4c78a8\"/>"
            );
        }
        let middle = LABEL + median(&row.runs) * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{LABEL} {floor:.1}H{:.1}M{middle:.1} {floor:.1}V{:.1}\" stroke=\"#f58518\"/>\n\
             <text x=\"{middle:.1}\" y=\"{:.1}\">{:.2} {}</text>",
            WIDTH - 40.0,
            floor - PANEL + 34.0,
            floor + 15.0,
            median(&row.runs),
            escaped(unit)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn every_bar_is_drawn_and_text_is_escaped() {
        let chart = bars(
            "ours < theirs",
            "s",
            &[Bar { label: "ours".into(), runs: vec![1.0, 2.0, 3.0] }, Bar { label: "a & b".into(), runs: vec![6.0] }],
        );
        assert_eq!((chart.matches("<circle").count(), chart.matches("<rect x").count()), (4, 2));
        assert!(chart.contains("ours &lt; theirs") && chart.contains("a &amp; b") && chart.contains("2.00 s"));
    }
    #[test]
    fn a_histogram_shows_every_run_on_one_scale() {
        let rows = [
            Bar { label: "off".into(), runs: vec![10.0, 10.01, 20.0] },
            Bar { label: "on".into(), runs: vec![0.0, 5.0] },
        ];
        let chart = histograms("gaps", "s", &rows);
        assert_eq!(chart.matches("<rect x").count(), 4, "{chart}");
        assert!(chart.contains("10.01 s") && chart.contains("2.50 s"), "{chart}");
    }
}
