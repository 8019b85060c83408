package lb

import "podwire.dev/internal/names"

func (v *violations) labelKey(path, key string) {
	if rule := names.LabelKey(key); rule != "" {
		v.add(path, key, "%s", rule)
	}
}

func (v *violations) labelValue(path, value string) {
	if rule := names.LabelValue(value); rule != "" {
		v.add(path, value, "%s", rule)
	}
}
