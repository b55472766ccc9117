// SPDX-License-Identifier: Apache-2.0

// Command halfopen finds TCP connections whose peer is gone, says why, and says
// when the kernel will notice.
//
// Each command has a file of its own, which adds the flags of the command and returns
// its action. The exit status is 0 if the command is done, 1 if it failed (one line on
// stderr says why, and what to do about it), 2 if it was used wrongly, and 3 if `check`
// found what it looks for, or not every peer answered a `probe`.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/template"

	"github.com/alecthomas/kingpin/v2"
	"github.com/cilium/ebpf"

	"github.com/halfopen/halfopen/internal/ask"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/helper"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitOther  = 3
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case helper.Argument:
			os.Exit(helper.Main(os.Args[2:]))
		case ask.Argument:
			os.Exit(ask.Main())
		}
	}
	// Without this, a write to a pipe that no process reads would end this process: an
	// agent would die with the reader of its log. With it, the write returns an error.
	// The channel is never read. Programs that this process runs would inherit SIG_IGN.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// An action runs a command whose flags are parsed. When the context ends, it returns
// early, without an error.
type action func(ctx context.Context, stdout, stderr io.Writer) error

// commands are the commands, in the order of `halfopen --help`. flags adds the flags of
// a command and returns its action, which reads them.
var commands = []struct {
	name, help string
	flags      func(*kingpin.CmdClause) action
}{
	{"agent", "Run the node agent: watch every TCP connection, and serve metrics and the API.", agentFlags},
	{"list", "List the TCP connections of this node, worst first, or count them in groups.", listFlags},
	{"check", "List the connections that match, and exit with status 3 if there are any, for scripts: did the change of a setting help?", checkFlags},
	{"explain", "Explain one connection: what it is doing, which timers apply, what is next, and what would make a dead peer be noticed sooner.", explainFlags},
	{"probe", "Ask the peers of connections for a sign of life now, by the kernel's own keepalive probe, also where the application has not turned keepalive on.", probeFlags},
	{"top", "Watch the connections full-screen, worst first, as they change.", topFlags},
	{"trace", "Print what happens to connections as it happens.", traceFlags},
	{"replay", "Print what the agent said that made a recording (agent --debug.record).", replayFlags},
	{"demo", "Make a zombie in private network namespaces, and watch it being found.", demoFlags},
	{"doctor", "Check what this kernel and these privileges allow, line by line.", doctorFlags},
	{"version", "Print the version.", versionFlags},
}

// usageError is the error of a wrong command line.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

var (
	// errReported is an error that the command has printed already.
	errReported = errors.New("already reported")
	// errFound is the error of a check that found connections. It is not printed.
	errFound = errors.New("found what it looks for")
	// errNotAnswered is the error of a probe that not every peer has answered. It is not
	// printed.
	errNotAnswered = errors.New("not every peer has answered")
)

// run runs halfopen with these arguments, and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	stampVersion()
	p, err := parse(joinNegative(args))
	if err == nil && p.action == nil {
		_, err = io.WriteString(stdout, p.help)
	} else if err == nil {
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends a command that does not
		err = p.action(ctx, stdout, stderr)
	}
	return exitCode(err, p.name, stderr)
}

// exitCode prints on stderr why a command failed, and returns the exit status.
func exitCode(err error, command string, stderr io.Writer) int {
	var verifier *ebpf.VerifierError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE): // the reader of our output has gone
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, errFound), errors.Is(err, errNotAnswered):
		return exitOther
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "halfopen: %s, try '%s --help'\n", oneLine(err), command)
		return exitUsage
	case errors.Is(err, context.Canceled):
		interrupted := strings.ReplaceAll(oneLine(err), context.Canceled.Error(), "interrupted before it was done")
		fmt.Fprintf(stderr, "halfopen: %s\n", interrupted)
		return exitFailed
	case errors.Is(err, syscall.EMFILE): // the message says what to do, whatever failed
		fmt.Fprintf(stderr, "halfopen: %s\n", errFiles)
		return exitFailed
	case errors.As(err, &verifier):
		fmt.Fprintf(stderr, "halfopen: %s; please report this kernel with what follows\n%+v\n", oneLine(err), verifier)
		return exitFailed
	}
	fmt.Fprintf(stderr, "halfopen: %s\n", oneLine(err))
	return exitFailed
}

// oneLine returns an error as one line of visible characters.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.Map(func(r rune) rune {
			if escape.Visible(r) {
				return r
			}
			return '?'
		}, strings.TrimSpace(l))
	}
	return strings.Join(lines, "; ")
}

// parsed is a parsed command line: an action, or else the help to print.
type parsed struct {
	name   string // "halfopen", or with the command
	action action
	help   string
}

// parse parses the command line. All its errors are usageErrors.
func parse(args []string) (parsed, error) {
	p := parsed{name: "halfopen"}
	app := kingpin.New("halfopen", "Finds TCP connections whose peer is gone (half-open, or zombies), says why, and says when the kernel will notice.")
	app.HelpFlag.Short('h').Help("Show help.")
	app.Version(versionText()).VersionFlag.Hidden()
	app.UsageTemplate(usageTemplate).UsageFuncs(usageFuncs)

	// kingpin ends the process after it has printed help or an error. Here it prints
	// into buffers and goes on; what it prints after that is discarded.
	var help, failure bytes.Buffer
	ended, status := false, 0
	app.UsageWriter(&help).ErrorWriter(&failure).Terminate(func(s int) {
		if !ended {
			ended, status = true, s
			app.UsageWriter(io.Discard).ErrorWriter(io.Discard)
		}
	})
	app.Validate(func(*kingpin.Application) error {
		if p.name == "halfopen" {
			return errors.New("no command given") // kingpin takes it for --help
		}
		return nil
	})

	actions := make(map[string]action)
	for _, c := range commands {
		actions[c.name] = c.flags(app.Command(c.name, c.help))
	}
	if c, _ := app.ParseContext(args); c != nil && c.SelectedCommand != nil {
		p.name += " " + c.SelectedCommand.FullCommand()
	}
	command, err := app.Parse(args)
	switch {
	case ended && status == 0:
		p.help = help.String()
		return p, nil
	case ended: // help for a command that does not exist
		p.name, err = "halfopen", errors.New(strings.TrimPrefix(failure.String(), "halfopen: error: "))
		fallthrough
	case err != nil:
		return p, usagef("%s", kingpinMessages.Replace(err.Error()))
	}
	p.action = actions[command]
	return p, nil
}

// joinNegative joins --port -1 to --port=-1, so that -1 is a wrong value and not an
// unknown flag.
func joinNegative(args []string) []string {
	var joined []string
	for i, arg := range args {
		negative := len(arg) > 1 && arg[0] == '-' && '0' <= arg[1] && arg[1] <= '9'
		if negative && i > 0 && strings.HasPrefix(args[i-1], "--") && !strings.Contains(args[i-1], "=") {
			joined[len(joined)-1] += "=" + arg
		} else {
			joined = append(joined, arg)
		}
	}
	return joined
}

// kingpinMessages replaces kingpin's words in error messages.
var kingpinMessages = strings.NewReplacer(
	"unknown long flag", "unknown flag",
	"unknown short flag", "unknown flag",
	"expected command but got", "unknown command",
	"expected argument for flag", "no value for flag",
	"required argument 'connection' not provided", "no connection given",
	"required argument 'recording' not provided", "no recording given",
)

const usageTemplate = `{{with .Context.SelectedCommand -}}
usage: halfopen {{.}} [<flags>]{{range .Args}} {{if .Required}}<{{.Name}}>{{else}}[<{{.Name}}>]{{end}}{{if .Value|IsCumulative}}...{{end}}{{end}}

{{.Help|Wrap 0}}
{{- if .Args}}
Arguments:
{{.Args|ArgsToTwoColumns|FormatTwoColumns}}
{{- end}}
{{else -}}
usage: halfopen <command> [<flags>]

{{.App.Help|Wrap 0}}
Commands:
{{.App.Commands|CommandsToTwoColumns|FormatTwoColumns}}
{{end -}}
Flags:
{{.Context.Flags|FlagsToTwoColumns|FormatTwoColumns -}}
{{if not .Context.SelectedCommand}}
'halfopen <command> --help' has more about a command.
{{end}}`

var usageFuncs = template.FuncMap{
	"CommandsToTwoColumns": func(commands []*kingpin.CmdModel) (rows [][2]string) {
		for _, c := range commands {
			rows = append(rows, [2]string{c.Name, c.Help})
		}
		return rows
	},
	"ArgsToTwoColumns": func(args []*kingpin.ArgModel) (rows [][2]string) {
		for _, a := range args {
			rows = append(rows, [2]string{"<" + a.Name + ">", a.Help})
		}
		return rows
	},
	"FlagsToTwoColumns": func(flags []*kingpin.FlagModel) (rows [][2]string) {
		for _, f := range flags {
			if f.Hidden {
				continue
			}
			name := "    --" + f.Name
			if f.Short != 0 {
				name = fmt.Sprintf("-%c, --%s", f.Short, f.Name)
			}
			if !f.IsBoolFlag() {
				name += "=" + f.FormatPlaceHolder()
			}
			rows = append(rows, [2]string{name, f.Help})
		}
		return rows
	},
}
