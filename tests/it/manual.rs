//! Completions and manual pages, by the shell and the formatter that read them.

use std::process::Stdio;

use tests::{
    program::{Finished, Launch},
    wait::{SOON, within},
};
use tokio::{io::AsyncWriteExt, process::Command};

const PROGRAMS: [&str; 2] = ["firehose-proxy", "filtered-proxy"];

async fn printed(program: &'static str, words: &[&str]) -> String {
    let launch = words.iter().fold(Launch::new(program), |launch, word| launch.arg(word));
    let Finished { code, stdout, stderr, .. } = launch.run(SOON).await;
    assert_eq!((code, &*stderr), (Some(0), ""), "{program} {words:?}");
    stdout
}

/// Runs a command that reads this text, and returns what it prints. It must print no error.
async fn fed(command: &mut Command, package: &str, text: &str) -> String {
    let missing = format!("run a program: install the package {package}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect(&missing);
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let run = async {
        stdin.write_all(text.as_bytes()).await.expect("write to a program");
        drop(stdin);
        child.wait_with_output().await.expect("wait for a program")
    };
    let done = within(SOON, package, run).await;
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    String::from_utf8(done.stdout).expect("text")
}

#[tokio::test]
async fn bash_completes_flags_subcommands_and_values() {
    for program in PROGRAMS {
        let script = printed(program, &["completions", "bash"]).await;
        fed(Command::new("bash").arg("-n"), "bash", &script).await;
        let function = format!("_{}", program.replace('-', "__"));
        let registered = format!("complete -F {function} ");
        assert!(script.contains(&registered), "{registered} in {script}");
        for (words, completion) in [
            (&["--max-conn"][..], "--max-connections"),
            (&["che"], "check"),
            (&["check", "--con"], "--connect"),
            (&["completions", "fi"], "fish"),
            (&["--log-format", "js"], "json"),
        ] {
            let (last, before) = words.split_last().expect("a word");
            let previous = before.last().copied().unwrap_or(program);
            let ask = format!(
                "{script}\nCOMP_WORDS=({program} {})\nCOMP_CWORD={}\n{function} {program} '{last}' '{previous}'\n\
                 printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
                words.join(" "),
                words.len()
            );
            let answer = fed(&mut Command::new("bash"), "bash", &ask).await;
            assert!(answer.lines().any(|line| line == completion), "{words:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn every_shell_has_completions_and_another_is_refused() {
    for program in PROGRAMS {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let script = printed(program, &["completions", shell]).await;
            assert!(script.contains("--log-level") || script.contains("log-level"), "{script}");
        }
        let done = Launch::new(program).arg("completions").arg("csh").run(SOON).await;
        assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{done:?}");
        assert!(done.stderr.contains("csh") && done.stderr.contains("bash"), "{done:?}");
    }
}

#[tokio::test]
async fn the_manual_page_is_formatted_without_a_warning() {
    for program in PROGRAMS {
        let page = printed(program, &["man"]).await;
        let mut groff = Command::new("groff");
        let text =
            fed(groff.args(["-man", "-Tascii", "-ww", "-P-cbou"]), "groff-base", &page).await;
        for part in ["NAME", "SYNOPSIS", "OPTIONS", "--max-connections", "MAX_CONNECTIONS", "check"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains(&format!("{program} {}", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
