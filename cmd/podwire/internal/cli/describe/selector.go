package describe

import (
	"maps"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// matches says whether a label selector selects labels; one that is absent selects nothing, an empty one everything.
func matches(sel *objectv1.LabelSelector, labels map[string]string) bool {
	if sel == nil || !contains(labels, sel.GetMatchLabels()) {
		return false
	}
	for _, e := range sel.GetMatchExpressions() {
		value, has := labels[e.GetKey()]
		ok := false
		switch e.GetOperator() {
		case "In":
			ok = has && slices.Contains(e.GetValues(), value)
		case "NotIn":
			ok = !has || !slices.Contains(e.GetValues(), value)
		case "Exists":
			ok = has
		case "DoesNotExist":
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

// contains says whether labels have every entry of want.
func contains(labels, want map[string]string) bool {
	for k, v := range want {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// selectorText is a selector as kubectl writes it; all is what an empty one means.
func selectorText(sel *objectv1.LabelSelector, all string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(sel.GetMatchLabels())) {
		parts = append(parts, k+"="+sel.GetMatchLabels()[k])
	}
	for _, e := range sel.GetMatchExpressions() {
		values := "(" + strings.Join(e.GetValues(), ",") + ")"
		switch e.GetOperator() {
		case "In":
			parts = append(parts, e.GetKey()+" in "+values)
		case "NotIn":
			parts = append(parts, e.GetKey()+" notin "+values)
		case "Exists":
			parts = append(parts, e.GetKey())
		case "DoesNotExist":
			parts = append(parts, "!"+e.GetKey())
		}
	}
	return or(strings.Join(parts, ","), all)
}

// mapText is a plain selector, such as a Service's.
func mapText(sel map[string]string) string {
	return or(strings.Join(pairs(sel, "="), ","), none)
}

// live says whether a Pod takes part in anything: one that has ended does not.
func live(p *objectv1.Pod) bool {
	phase := p.GetStatus().GetPhase()
	return phase != "Succeeded" && phase != "Failed"
}

func podReady(p *objectv1.Pod) bool {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus() == "True"
		}
	}
	return false
}
