//! How a failure is told: `error:` and `hint:` lines on stderr, and with `--json` one object on stdout.

use std::any::Any;

use serde_json::json;

use crate::problem::{Problem, Problems};

/// Prints a refusal or failure; every problem found, each with its remedy.
pub fn report(error: &anyhow::Error, json: bool) {
    let problems = problems(error);
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    for circumstance in circumstances(error) {
        eprintln!("  while {circumstance}");
    }
    if problems.len() > 1 {
        eprintln!("{} problems", problems.len());
    }
    if json {
        println!("{}", object(&problems));
    }
}

/// Prints a panic as what it is: our bug, not the reader's mistake.
pub(super) fn report_bug(panic: &(dyn Any + Send), json: bool) {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let problem = Problem::new(
        format!("internal error: {}", text.unwrap_or("unknown")),
        "",
        "this is a bug in pgkiln; please report it with the command you ran and the lines above",
    );
    eprintln!("error: {problem}");
    if json {
        println!("{}", object(&[problem]));
    }
}

fn problems(error: &anyhow::Error) -> Vec<Problem> {
    // Also finds a problem that was itself attached as context.
    if let Some(problem) = error.downcast_ref::<Problem>() {
        return vec![problem.clone()];
    }
    for cause in error.chain() {
        if let Some(problem) = cause.downcast_ref::<Problem>() {
            return vec![problem.clone()];
        }
        if let Some(Problems(list)) = cause.downcast_ref::<Problems>() {
            return list.clone();
        }
    }
    vec![Problem::new(format!("{error:#}"), "", "")]
}

/// The contexts around a [`Problem`]; other errors carry theirs in their text.
fn circumstances(error: &anyhow::Error) -> Vec<String> {
    let is_problem = |cause: &(dyn std::error::Error + 'static)| cause.is::<Problem>() || cause.is::<Problems>();
    if !error.chain().any(is_problem) {
        return Vec::new();
    }
    error.chain().take_while(|cause| !is_problem(*cause)).map(ToString::to_string).collect()
}

fn object(problems: &[Problem]) -> serde_json::Value {
    match problems {
        [first] => json!({ "error": first }),
        [first, ..] => json!({ "error": first, "errors": problems }),
        [] => json!({ "error": Problem::new("unknown error", "", "") }),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn problems_keep_place_and_remedy_under_context() {
        let problem = Problem::new("unknown key `nodse`", "cluster.toml:4", "did you mean `nodes`?");
        let error = Err::<(), _>(problem.clone()).context("loading cluster `orders`").unwrap_err();
        assert_eq!(problems(&error), [problem]);
        assert_eq!(circumstances(&error), ["loading cluster `orders`"]);
        let text = object(&problems(&error)).to_string();
        assert_eq!(
            text,
            r#"{"error":{"what":"unknown key `nodse`","where":"cluster.toml:4","remedy":"did you mean `nodes`?"}}"#
        );
    }

    #[test]
    fn other_errors_show_their_whole_chain() {
        let error = anyhow::anyhow!("permission denied").context("reading image.toml");
        assert_eq!(problems(&error)[0].what, "reading image.toml: permission denied");
        assert!(circumstances(&error).is_empty());
    }
}
