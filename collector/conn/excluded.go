// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// OwnerGlobs are names of owners ([Connection.Owner]), or patterns of them as of [path.Match].
// That of a unit may be without .service or .scope.
type OwnerGlobs []string

// ParseOwnerGlob checks a name or pattern.
func ParseOwnerGlob(s string) (string, error) {
	if s == "" {
		return "", errors.New("the name is empty")
	}
	if _, err := path.Match(s, ""); err != nil {
		return "", fmt.Errorf("%q is not a pattern of names such as chaos-*: write \\ before a [ or a \\ of the name itself", s)
	}
	return s, nil
}

// Match reports whether a name matches. That of an unknown owner never does.
func (g OwnerGlobs) Match(name string) bool {
	if name == "" {
		return false
	}
	return slices.ContainsFunc(g, func(glob string) bool {
		for _, n := range []string{name, strings.TrimSuffix(name, ".service"), strings.TrimSuffix(name, ".scope")} {
			if ok, err := path.Match(glob, n); ok && err == nil || glob == n {
				return true
			}
		}
		return false
	})
}
