//! What `--log` takes: levels, alone or for a target. The library that filters takes any word for a target, so that a level
//! with a slip in it would silence a program.

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Looks whether each part of a comma-separated list is `LEVEL` or `TARGET=LEVEL`. Parts with fields (`[span{...}]`) are left
/// to the library.
///
/// # Errors
/// With the part that is none, and what there is.
pub fn check(text: &str) -> Result<(), String> {
    let is_level = |level: &str| LEVELS.iter().any(|known| level.eq_ignore_ascii_case(known));
    let level = |part: &str| part.rsplit_once('=').map_or(part, |(_, level)| level).trim().to_owned();
    match text.split(',').find(|part| !part.contains(['[', '{', ']', '}']) && !is_level(&level(part))) {
        Some(part) => Err(format!(
            "--log {text:?}: {:?} is no level; give LEVEL or TARGET=LEVEL, with a level of {}",
            level(part),
            LEVELS.join(", ")
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_with_slips_are_refused() {
        for right in ["info", "WARN", "info,pangea_dataplane=debug", "off, quinn=trace", "[job{kind=put}]=debug,info"] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for wrong in ["inof", "", "info,", "pangea_dataplane", "blah=", "info,quinn=tarce"] {
            assert!(check(wrong).unwrap_err().contains("is no level"), "{wrong}");
        }
    }
}
