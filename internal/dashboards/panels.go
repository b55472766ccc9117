// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Grafana's grid is 24 wide.
const (
	statHeight, statWidth   = 4, 3
	graphHeight, graphWidth = 8, 12
)

// perSecond is a unit of Grafana for which the SDK has no name.
const perSecond = "cps"

const (
	green  = "green"
	yellow = "yellow"
	orange = "orange"
	red    = "red"
	blue   = "blue"
)

// A model is a dashboard in the schema that every Grafana from version 10 on imports. The
// SDK prefers a newer schema, which only the newest Grafana imports.
type (
	model   = dashboard.Dashboard        //nolint:staticcheck // SA1019: see above
	builder = dashboard.DashboardBuilder //nolint:staticcheck // SA1019: see above
)

var source = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}

// of returns a selector of a metric's series on the nodes that the variables cluster and
// node choose. The cluster "all" also matches series without a cluster.
func of(metric string, matchers ...string) string {
	return metric + "{" + strings.Join(append([]string{`cluster=~"$cluster"`, `instance=~"$node"`}, matchers...), ", ") + "}"
}

// timeouts selects the causes of death that the alert HalfopenTimeoutsRising counts.
const timeouts = `cause=~"keepalive_timeout|user_timeout|retransmit_timeout|window_probe_timeout|connect_timeout"`

func query(expr, legend string) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().Expr(expr).LegendFormat(legend).Range().RefId(refID(0))
}

// refID returns the name of a panel's query. The columns of a table refer to it.
func refID(i int) string { return string(rune('A' + i)) }

// steps returns thresholds: the first colour, and other colours from a value on.
func steps(first string, rest ...dashboard.Threshold) cog.Builder[dashboard.ThresholdsConfig] {
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).
		Steps(append([]dashboard.Threshold{{Color: first}}, rest...))
}

func from(value float64, color string) dashboard.Threshold {
	return dashboard.Threshold{Value: &value, Color: color}
}

// number is a panel with one figure, and its history in the background.
func number(title, description, unit, expr string, thresholds cog.Builder[dashboard.ThresholdsConfig]) *stat.PanelBuilder {
	return stat.NewPanelBuilder().Title(title).Description(description).Datasource(source).
		Height(statHeight).Span(statWidth).Unit(unit).Thresholds(thresholds).
		GraphMode(common.BigValueGraphModeArea).ColorMode(common.BigValueColorModeValue).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		WithTarget(query(expr, ""))
}

// graph is a panel with lines over time.
func graph(title, description, unit string, queries ...*prometheus.DataqueryBuilder) *timeseries.PanelBuilder {
	g := timeseries.NewPanelBuilder().Title(title).Description(description).Datasource(source).
		Height(graphHeight).Span(graphWidth).Unit(unit).Min(0).FillOpacity(10).
		ShowPoints(common.VisibilityModeNever).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending)).
		Legend(common.NewVizLegendOptionsBuilder().ShowLegend(true).
			DisplayMode(common.LegendDisplayModeTable).Placement(common.LegendPlacementRight).
			Calcs([]string{"lastNotNull", "max"}))
	for i, q := range queries {
		g.WithTarget(q.RefId(refID(i)))
	}
	return g
}

// stacked stacks the lines of a graph.
func stacked(g *timeseries.PanelBuilder) *timeseries.PanelBuilder {
	return g.FillOpacity(40).Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
}

// A column of a table shows the value or a label of a query under a name.
type column struct {
	field, name string
	unit        string
	link        string
}

// list is a table of instant queries. It has a row for each set of labels that the queries
// have in common, and the columns in their order. One column sorts the rows, in
// descending order unless up is set.
func list(title, description string, queries []string, columns []column, sortBy string, up bool) *table.PanelBuilder {
	t := table.NewPanelBuilder().Title(title).Description(description).Datasource(source).
		Height(graphHeight).Span(graphWidth).
		SortBy([]cog.Builder[common.TableSortByFieldState]{
			common.NewTableSortByFieldStateBuilder().DisplayName(sortBy).Desc(!up),
		})
	for i, expr := range queries {
		t.WithTarget(prometheus.NewDataqueryBuilder().Expr(expr).Instant().
			Format(prometheus.PromQueryFormatTable).RefId(refID(i)))
	}
	names, order := map[string]string{}, map[string]int{}
	for i, c := range columns {
		names[c.field], order[c.field] = c.name, i
		var properties []dashboard.DynamicConfigValue
		if c.unit != "" {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "unit", Value: c.unit})
		}
		if c.link != "" {
			properties = append(properties, dashboard.DynamicConfigValue{
				Id: "links", Value: []map[string]string{{"title": "Node", "url": c.link}},
			})
		}
		if len(properties) > 0 {
			t.OverrideByName(c.name, properties)
		}
	}
	return t.
		WithTransformation(dashboard.DataTransformerConfig{Id: "merge", Options: map[string]any{}}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
			"excludeByName": map[string]bool{"Time": true},
			"indexByName":   order,
			"renameByName":  names,
		}})
}

// idleness is a heat map of the idle times of connections.
func idleness() *heatmap.PanelBuilder {
	return heatmap.NewPanelBuilder().Title("Idle times of established connections").
		Description("The number of connections by idle time, at each moment. Many NATs and load balancers forget a flow after 350 s.").
		Datasource(source).Height(graphHeight).Span(graphWidth).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit("s")).
		Color(heatmap.NewHeatmapColorOptionsBuilder().Mode(heatmap.HeatmapColorModeScheme).Scheme("Oranges").Steps(64)).
		WithTarget(query("sum by (le) ("+of("halfopen_tcp_connection_idle_seconds_bucket")+")", "{{le}}").
			Format(prometheus.PromQueryFormatHeatmap))
}

// choice is a variable that has the values of a label.
func choice(name, label, metric, of string, many bool) *dashboard.QueryVariableBuilder {
	v := dashboard.NewQueryVariableBuilder(name).Label(label).Datasource(source).
		Query(dashboard.StringOrMap{String: cog.ToPtr("label_values(" + metric + ", " + of + ")")}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc)
	if many {
		// "All" is .* and not the list of values, so that it also matches series without the label.
		all := dashboard.StringOrArrayOfString{ArrayOfString: []string{"$__all"}}
		v.Multi(true).IncludeAll(true).AllValue(".*").
			Current(dashboard.VariableOption{Selected: cog.ToPtr(true), Text: dashboard.StringOrArrayOfString{ArrayOfString: []string{"All"}}, Value: all})
	}
	return v
}

// board returns a dashboard with the parts that both have.
func board(uid, title, description string, manyNodes bool) *builder {
	//nolint:staticcheck // SA1019: see model
	return dashboard.NewDashboardBuilder(title).Uid(uid).Description(description).
		Tags([]string{"halfopen", "tcp"}).Refresh("30s").Time("now-3h", "now").Timezone("browser").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(choice("cluster", "Cluster", "halfopen_build_info", "cluster", true)).
		WithVariable(choice("node", "Node", `halfopen_build_info{cluster=~"$cluster"}`, "instance", manyNodes)).
		WithVariable(choice("owner", "Owner", of("halfopen_tcp_zombies_by_owner"), "owner", true)).
		Link(dashboard.NewDashboardLinkBuilder("halfopen").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"halfopen"}).IncludeVars(true).KeepTime(true)).
		Annotation(dashboard.NewAnnotationQueryBuilder().Name("Alerts").Datasource(source).Enable(true).IconColor(red).
			Expr(of("ALERTS", `alertname=~"Halfopen.*"`, `alertstate="firing"`, `severity!="info"`)).
			TitleFormat("{{alertname}}").TextFormat("{{severity}} on {{instance}}"))
}

// endings adds the rows of panels about deaths and about solicitations.
func endings(d *builder) {
	d.WithRow(dashboard.NewRowBuilder("Ends")).
		WithPanel(stacked(graph("Deaths by cause", "Connections that ended other than by an orderly close, each second.", perSecond,
			query("sum by (cause) (rate("+of("halfopen_tcp_deaths_total", `cause!="closed"`)+"[$__rate_interval]))", "{{cause}}")))).
		WithPanel(graph("Timeouts, and as usual", "What TCP gave up by itself, in 15 minutes, and the average of the last day: at three times that HalfopenTimeoutsRising fires, unless other days are like that.", "short",
			query("900 * sum by (cause) ("+of("instance_cause:halfopen_tcp_timeouts:rate15m")+")", "{{cause}}"),
			query("900 * sum by (cause) (avg_over_time("+of("instance_cause:halfopen_tcp_timeouts:rate15m")+"[1d]))", "{{cause}}, usually"))).
		WithPanel(graph("How long zombies live", "Until they recover or the kernel gives them up: what users wait.", "s",
			query("histogram_quantile(0.5, sum by (le) (rate("+of("halfopen_tcp_zombie_seconds_bucket")+"[1h])))", "median"),
			query("histogram_quantile(0.95, sum by (le) (rate("+of("halfopen_tcp_zombie_seconds_bucket")+"[1h])))", "95 %"))).
		WithPanel(graph("Orderly ends", "Connections that both sides closed, each second.", perSecond,
			query("sum(rate("+of("halfopen_tcp_deaths_total", `cause="closed"`)+"[$__rate_interval]))", "closed")))
	d.WithRow(dashboard.NewRowBuilder("Questions to peers")).
		WithPanel(graph("Keepalive probes", "Sent, and answered, each second. A gap between them is a peer that is gone.", perSecond,
			query("sum(rate("+of("halfopen_tcp_keepalive_probes_sent_total")+"[$__rate_interval]))", "sent"),
			query("sum(rate("+of("halfopen_tcp_keepalive_probes_answered_total")+"[$__rate_interval]))", "answered"))).
		WithPanel(stacked(graph("Retransmissions", "By what made the kernel send again, each second.", perSecond,
			query("sum by (type) (rate("+of("halfopen_tcp_retransmits_total")+"[$__rate_interval]))", "{{type}}"))))
}
