// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/halfopen/halfopen/exporter/api"
)

// through traces through an agent.
func (t *trace) through(ctx context.Context, agent *api.Client, stdout, stderr io.Writer) error {
	ended := ctx // ends by the user or by --duration
	g, ctx := errgroup.WithContext(ctx)
	stream, err := agent.Stream(ctx)
	switch {
	case ended.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	defer stream.Close()
	t.sayWatching(stderr, " through "+agent.String())
	events := make(chan api.StreamEvent, traceBuffer)
	g.Go(func() error {
		defer close(events)
		err := stream.Receive(func(e api.StreamEvent) {
			select {
			case events <- e:
			case <-ctx.Done(): // printing has ended
			}
		})
		if ended.Err() != nil {
			return nil
		}
		return err
	})
	g.Go(func() error {
		emit := t.printer(stdout)
		var missed uint64
		unowned := 0
		defer func() {
			if unowned > 0 {
				fmt.Fprintf(stderr, "halfopen: %d events whose process was not known in time were not printed: leave out --pid, or use --url=none\n", unowned)
			}
		}()
		begun := false
		for {
			batch := batch(ended, events)
			if len(batch) == 0 {
				return nil
			}
			// An agent sends events sorted by kind.
			slices.SortStableFunc(batch, func(a, b api.StreamEvent) int { return a.At.Compare(b.At) })
			for i := range batch {
				switch e := &batch[i]; {
				case e.Event == "" && !begun: // before we asked
					begun, missed = true, e.Missed
				case e.Event == "":
					missed = sayDropped(stderr, e.Missed, missed)
				case t.wanted(&e.Notice) && len(t.PIDs) > 0 && ownerUnknown(&e.Notice):
					unowned++
				case t.wanted(&e.Notice) && t.owned(&e.Notice):
					if err := emit(&e.Notice, e.Data); err != nil {
						return err
					}
				}
			}
		}
	})
	return g.Wait()
}
