//! Lines of the shells' languages that set and unset environment variables.

/// A shell whose language is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Shell {
    /// bash, and every other POSIX shell.
    #[value(alias = "sh")]
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// PowerShell.
    #[value(alias = "pwsh")]
    Powershell,
}

impl Shell {
    /// A line that sets a variable for this shell and the programs that it starts.
    pub(super) fn set(self, name: &str, value: &str) -> String {
        let value = self.quoted(value);
        match self {
            Self::Bash | Self::Zsh => format!("export {name}={value}"),
            Self::Fish => format!("set -gx {name} {value}"),
            Self::Powershell => format!("$env:{name} = {value}"),
        }
    }

    /// A line that takes a variable away.
    pub(super) fn unset(self, name: &str) -> String {
        match self {
            Self::Bash | Self::Zsh => format!("unset {name}"),
            Self::Fish => format!("set -e {name}"),
            Self::Powershell => format!("Remove-Item Env:{name} -ErrorAction SilentlyContinue"),
        }
    }

    /// Returns the text as one word, quoted so that a shell does not interpret it.
    pub(in crate::cli) fn quoted(self, text: &str) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:@%+,".contains(&byte);
        let is_plain = !text.is_empty() && text.bytes().all(plain);
        match self {
            // A % begins a job's name in fish, and PowerShell takes bare words for commands.
            Self::Bash | Self::Zsh if is_plain => text.to_owned(),
            Self::Fish if is_plain && !text.contains('%') => text.to_owned(),
            Self::Bash | Self::Zsh => format!("'{}'", text.replace('\'', r"'\''")),
            Self::Fish => format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'")),
            Self::Powershell => {
                let mut quoted = String::from("'");
                for character in text.chars() {
                    // PowerShell takes typographic quotes for quotes.
                    if matches!(character, '\'' | '\u{2018}'..='\u{201b}') {
                        quoted.push(character);
                    }
                    quoted.push(character);
                }
                quoted.push('\'');
                quoted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const HOSTILE: [&str; 12] = [
        "/srv/data-1/aws",
        "/home/a b/x",
        "it's",
        r"back\slash\'",
        "$(rm) `rm` ${HOME} $HOME",
        "\"double\" & ; | > < # ~ * ? [a] {b} !1",
        "two\nlines\n",
        "",
        "-n",
        "typo\u{2019}graphic \u{2018}quotes\u{201b}",
        "%self =ls",
        "umläut",
    ];

    #[test]
    fn a_word_that_means_itself_is_left_as_it_is() {
        assert_eq!(Shell::Bash.quoted("/srv/data-1/aws"), "/srv/data-1/aws");
        assert_eq!(Shell::Bash.quoted("it's"), r"'it'\''s'");
        assert_eq!(Shell::Fish.quoted(r"it's \n"), r"'it\'s \\n'");
        assert_eq!(Shell::Powershell.quoted("it's \u{2019}"), "'it''s \u{2019}\u{2019}'");
        assert_eq!(Shell::Powershell.set("A", "$x"), "$env:A = '$x'");
    }

    /// Returns what a shell, of those that are on this machine, makes of the lines.
    fn evaluated(shell: Shell, program: &str, value: &str) -> Option<String> {
        let lines =
            [shell.set("KEPT", value), shell.set("GONE", value), shell.unset("GONE")].join("\n");
        let script = format!("{lines}\nprintenv GONE || printenv KEPT");
        let output = Command::new(program)
            .args(["-c", &script])
            .env("KEPT", "before")
            .env("GONE", "before")
            .output();
        let output = match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            output => output.unwrap(),
        };
        Some(String::from_utf8(output.stdout).unwrap().strip_suffix('\n').unwrap().to_owned())
    }

    #[test]
    fn shells_take_every_value_for_what_it_is() {
        let shells = [
            (Shell::Bash, "sh"),
            (Shell::Bash, "bash"),
            (Shell::Zsh, "zsh"),
            (Shell::Fish, "fish"),
        ];
        let mut ran = 0;
        for (shell, program) in shells {
            for value in HOSTILE {
                let Some(is) = evaluated(shell, program, value) else { continue };
                assert_eq!(is, value, "{program}");
                ran += 1;
            }
        }
        assert!(ran >= 2 * HOSTILE.len(), "sh and bash are on every machine");
    }
}
