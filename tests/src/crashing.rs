//! The places where tests kill the binary.

use std::collections::BTreeSet;
use std::path::Path;

/// What points in jobs' own commits and promotions begin with.
const OF_JOBS: &str = "job::";

/// Every fail point that the sources of `crates` name, so that a new one is killed without being listed anywhere; but for
/// those that only a job comes to.
pub fn fail_points(crates: &[&str]) -> BTreeSet<String> {
    let mut points = named(crates);
    points.retain(|point| !point.starts_with(OF_JOBS));
    points
}

/// Every fail point that a running job comes to.
pub fn job_points() -> BTreeSet<String> {
    let mut points = named(&["common/table"]);
    points.retain(|point| point.starts_with(OF_JOBS) && point != "job::before_promote");
    points.append(&mut named(&["processor"]));
    points
}

fn named(crates: &[&str]) -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder)
            .expect("a source folder")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                for part in text.split("fail_point!(\"").skip(1) {
                    found.extend(part.split('"').next().map(str::to_owned));
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    for name in crates {
        walk(
            &Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("..")
                .join(name)
                .join("src"),
            &mut found,
        );
    }
    found
}
