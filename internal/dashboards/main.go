// SPDX-License-Identifier: Apache-2.0

// Dashboards writes the Grafana dashboards of deploy/grafana with Grafana's foundation
// SDK. `make generate` runs it. The shipped binary does not contain it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: dashboards DIRECTORY")
	}
	for name, b := range map[string]cog.Builder[model]{
		"halfopen-node.json":  node(),
		"halfopen-fleet.json": fleet(),
	} {
		d, err := b.Build()
		if err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
		for i, p := range d.Panels {
			id := uint32(i + 1)
			if p.Panel != nil {
				p.Panel.Id = &id
			} else {
				p.RowPanel.Id = id
			}
		}
		text, err := json.MarshalIndent(d, "", "  ")
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(args[0], name), append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
