// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"slices"
	"strings"
)

// minOwnerID is the least number of characters of an id that name a container or pod.
const minOwnerID = 8

// An OwnerSet selects connections by names of their owners. A name can be the name of the
// process, the unit with or without .service or .scope, the container, the pod with or without
// NAMESPACE/, or at least the first 8 characters of the container's id or the pod's UID; "-"
// means that no owner is known.
type OwnerSet struct {
	names map[string]struct{}
	ids   []string // sorted names that can begin an id, none of which begins another
	none  bool     // "-" is among the names
}

// NewOwnerSet makes a set of these names.
func NewOwnerSet(names []string) *OwnerSet {
	s := &OwnerSet{names: make(map[string]struct{}, len(names))}
	for _, name := range names {
		if name == "-" {
			s.none = true
			continue
		}
		s.names[name] = struct{}{}
		if len(name) >= minOwnerID {
			s.ids = append(s.ids, name)
		}
	}
	slices.Sort(s.ids)
	kept := s.ids[:0]
	for _, id := range s.ids { // each follows those that begin it
		if n := len(kept); n == 0 || !strings.HasPrefix(id, kept[n-1]) {
			kept = append(kept, id)
		}
	}
	s.ids = kept
	return s
}

// Owns reports whether one of the names names the owner of the connection.
func (s *OwnerSet) Owns(c *Connection) bool {
	if s.none && c.Owner() == "" {
		return true
	}
	g := &c.Cgroup
	return c.Process != nil && s.has(c.Process.Comm) || s.beginsID(g.ContainerID) || s.beginsID(g.PodUID) ||
		g.Container != "" && s.has(g.Container) || g.Pod != "" && (s.has(g.Pod) || s.has(g.PodName())) ||
		g.Unit != "" && (s.has(g.Unit) || s.hasUnit(g.Unit, ".service") || s.hasUnit(g.Unit, ".scope"))
}

func (s *OwnerSet) has(name string) bool {
	_, ok := s.names[name]
	return ok
}

// hasUnit reports whether a unit with this suffix has a name without it in the set.
func (s *OwnerSet) hasUnit(unit, suffix string) bool {
	name, ok := strings.CutSuffix(unit, suffix)
	return ok && s.has(name)
}

// beginsID reports whether a name is the beginning of an id, or all of it.
func (s *OwnerSet) beginsID(id string) bool {
	i, found := slices.BinarySearch(s.ids, id)
	return found || i > 0 && strings.HasPrefix(id, s.ids[i-1])
}
