// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

// licenses has the licences of everything in the binary; internal/licenses writes it.
//
//go:embed licenses.txt
var licenses string

func versionFlags(cmd *kingpin.CmdClause) action {
	all := cmd.Flag("licenses", "Print the licences and notices of everything in the binary, too.").Bool()
	return func(_ context.Context, stdout, _ io.Writer) error {
		text := versionText() + "\n"
		if *all {
			text += "\n" + licenses
		}
		_, err := io.WriteString(stdout, text)
		return err
	}
}

// versionText returns the version as Prometheus's tools print it, without unknown
// values.
func versionText() string {
	var known []string
	for line := range strings.SplitSeq(version.Print("halfopen"), "\n") {
		if _, what, _ := strings.Cut(line, ":"); !slices.Contains([]string{"", "unknown"}, strings.TrimSpace(what)) {
			known = append(known, line)
		}
	}
	return strings.Join(known, "\n")
}

// stampVersion takes the version from the module if the linker did not set one, as with
// `go install`.
func stampVersion() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
}
