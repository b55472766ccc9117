// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

func versionFlags(*kingpin.CmdClause) action {
	return func(_ context.Context, stdout, _ io.Writer) error {
		_, err := fmt.Fprintln(stdout, versionText())
		return err
	}
}

// versionText is as Prometheus's tools have it, without what is not known.
func versionText() string {
	var known []string
	for line := range strings.SplitSeq(version.Print("halfopen"), "\n") {
		if _, what, _ := strings.Cut(line, ":"); !slices.Contains([]string{"", "unknown"}, strings.TrimSpace(what)) {
			known = append(known, line)
		}
	}
	return strings.Join(known, "\n")
}

// stampVersion takes the version from the module where the linker was not told
// one, as with `go install`.
func stampVersion() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
}
