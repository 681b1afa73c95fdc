//! The wildcards of ECR's tag patterns and of IAM's actions: the whole text must match. Pure.

/// Returns whether `text` matches `pattern` as a whole, `*` standing for any run of characters (also an empty one).
pub fn matches(pattern: &str, text: &str) -> bool {
    matches_by(pattern, text, |expected, found| expected == found)
}

/// Returns whether an IAM action such as `ecr:PutImage` matches `pattern`: `?` stands for one
/// character and case doesn't count. Both are ASCII.
pub fn matches_action(pattern: &str, action: &str) -> bool {
    matches_by(pattern, action, |expected, found| {
        expected == b'?' || expected.eq_ignore_ascii_case(&found)
    })
}

/// Runs in time proportional to the product of the lengths, whatever the pattern: there is no backtracking over stars
/// other than the last one.
fn matches_by(pattern: &str, text: &str, same: impl Fn(u8, u8) -> bool) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            last_star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && same(pattern[p], text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = last_star {
            // Let the last star swallow one more character and try again behind it.
            last_star = Some((star, from + 1));
            p = star + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_is_any_run_and_everything_else_is_literal() {
        for (pattern, text, expected) in [
            ("v*", "v1", true),
            ("v*", "v", true),
            ("v*", "rv1", false),
            ("*rc*", "v1-rc2", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("prod", "Prod", false),
            ("v.*", "v11", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn in_actions_a_question_mark_is_one_character_and_case_does_not_count() {
        for (pattern, action, expected) in [
            ("*", "ecr:PutImage", true),
            ("ECR:putimage", "ecr:PutImage", true),
            ("ecr:Put?mage", "ecr:PutImage", true),
            ("ecr:*Image", "ecr:BatchGetImage", true),
            ("ecr:PutImage?", "ecr:PutImage", false),
            ("ecr:Get*", "ecr:PutImage", false),
        ] {
            assert_eq!(matches_action(pattern, action), expected, "{pattern} {action}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_regular_expression(pattern in "[ab*]{0,8}", text in "[ab]{0,12}") {
            let naive = regex::Regex::new(&format!("^{}$", pattern.replace('*', ".*"))).unwrap();
            prop_assert_eq!(matches(&pattern, &text), naive.is_match(&text));
        }
    }
}
