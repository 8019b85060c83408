package describe

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// labelService names, on an EndpointSlice, its Service.
const labelService = "kubernetes.io/service-name"

func (p *page) service(ctx context.Context, o *objectv1.Service) {
	p.head(o)
	spec := o.GetSpec()
	p.field(0, "Selector", mapText(spec.GetSelector()))
	p.field(0, "Type", or(spec.GetType(), "ClusterIP"))
	p.optional(0, "External Name", spec.GetExternalName())
	p.optional(0, "IP Family Policy", spec.GetIpFamilyPolicy())
	p.field(0, "IP Families", joined(spec.GetIpFamilies()))
	p.field(0, "IPs", joined(spec.GetClusterIps()))
	if len(spec.GetExternalIps()) > 0 {
		p.field(0, "External IPs", joined(spec.GetExternalIps()))
	}
	var doors []string
	for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
		doors = append(doors, or(in.GetIp(), in.GetHostname()))
	}
	if spec.GetType() == "LoadBalancer" {
		p.field(0, "LoadBalancer Ingress", or(strings.Join(doors, ", "), "<pending>"))
		if len(doors) == 0 {
			p.warn("no address from the LoadBalancer pool yet")
		}
	}
	of, known := p.slicesOf(ctx, o.GetMetadata().GetNamespace(), o.GetMetadata().GetName())
	ready := 0
	for _, port := range spec.GetPorts() {
		p.field(0, "Port", strings.TrimSpace(fmt.Sprintf("%s %d/%s", or(port.GetName(), "<unset>"), port.GetPort(), or(port.GetProtocol(), "TCP"))))
		p.field(0, "TargetPort", fmt.Sprintf("%s/%s", targetPort(port), or(port.GetProtocol(), "TCP")))
		if port.GetNodePort() != 0 {
			p.field(0, "NodePort", fmt.Sprintf("%s %d/%s", or(port.GetName(), "<unset>"), port.GetNodePort(), or(port.GetProtocol(), "TCP")))
		}
		if known && spec.GetType() != "ExternalName" {
			list := endpointsOf(of, port.GetName())
			ready += len(list)
			p.field(0, "Endpoints", some(list))
		}
	}
	p.field(0, "Session Affinity", or(spec.GetSessionAffinity(), "None"))
	p.optional(0, "External Traffic Policy", spec.GetExternalTrafficPolicy())
	p.optional(0, "Internal Traffic Policy", spec.GetInternalTrafficPolicy())
	p.optional(0, "Traffic Distribution", spec.GetTrafficDistribution())
	if spec.GetHealthCheckNodePort() != 0 {
		p.field(0, "HealthCheck NodePort", strconv.Itoa(int(spec.GetHealthCheckNodePort())))
	}
	if known && ready == 0 && spec.GetType() != "ExternalName" {
		p.warnNoEndpoints(ctx, o)
	}
}

func targetPort(port *objectv1.ServicePort) string {
	switch v := port.GetTargetPort().AsInterface().(type) {
	case string:
		return v
	case float64:
		return strconv.Itoa(int(v))
	default:
		return strconv.Itoa(int(port.GetPort()))
	}
}

// slicesOf are the EndpointSlices of a Service.
func (p *page) slicesOf(ctx context.Context, namespace, service string) ([]*objectv1.EndpointSlice, bool) {
	all, ok := list[*objectv1.EndpointSlice](ctx, p, "EndpointSlice", namespace)
	return slices.DeleteFunc(all, func(s *objectv1.EndpointSlice) bool {
		return s.GetMetadata().GetLabels()[labelService] != service
	}), ok
}

// endpointsOf are the ready endpoints of a Service's port, as address:port. An absent ready means true.
func endpointsOf(of []*objectv1.EndpointSlice, port string) []string {
	var out []string
	for _, s := range of {
		for _, sp := range s.GetPorts() {
			if sp.GetName() != port || sp.Port == nil {
				continue
			}
			for _, e := range s.GetEndpoints() {
				if c := e.GetConditions(); c != nil && c.Ready != nil && !c.GetReady() {
					continue
				}
				for _, addr := range e.GetAddresses() {
					out = append(out, net.JoinHostPort(addr, strconv.Itoa(int(sp.GetPort()))))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// some names the first of a list and counts the rest.
func some(list []string) string {
	if n := len(list); n > maxListed {
		return strings.Join(list[:maxListed], ",") + fmt.Sprintf(" + %d more...", n-maxListed)
	}
	return or(strings.Join(list, ","), none)
}

// warnNoEndpoints says why a Service has none.
func (p *page) warnNoEndpoints(ctx context.Context, o *objectv1.Service) {
	sel := o.GetSpec().GetSelector()
	if len(sel) == 0 {
		p.warn("no endpoints: the Service has no selector, and no EndpointSlice labelled %s=%s has a ready one", labelService, o.GetMetadata().GetName())
		return
	}
	pods, ok := list[*objectv1.Pod](ctx, p, "Pod", o.GetMetadata().GetNamespace())
	if !ok {
		return
	}
	pods = slices.DeleteFunc(pods, func(pod *objectv1.Pod) bool {
		return !contains(pod.GetMetadata().GetLabels(), sel) || !live(pod)
	})
	ready := slices.DeleteFunc(slices.Clone(pods), func(pod *objectv1.Pod) bool { return !podReady(pod) })
	switch {
	case len(pods) == 0:
		p.warn("no endpoints: no pod of namespace %s that has not ended is labelled %s", o.GetMetadata().GetNamespace(), mapText(sel))
	case len(ready) == 0:
		p.warn("no endpoints: of the pods that the selector matches none is ready: %s", names(pods))
	default:
		for _, port := range o.GetSpec().GetPorts() {
			if name, ok := port.GetTargetPort().AsInterface().(string); ok && !slices.ContainsFunc(ready, func(pod *objectv1.Pod) bool { return hasPort(pod, name) }) {
				p.warn("no endpoints of port %d: no container port of the ready pods %s is named %s", port.GetPort(), names(ready), name)
				return
			}
		}
		p.warn("no endpoints, though these pods are ready: %s; an address of the Service's families, or the writer of endpoints, is missing", names(ready))
	}
}

func names(pods []*objectv1.Pod) string {
	var out []string
	for _, pod := range pods {
		out = append(out, pod.GetMetadata().GetName())
	}
	slices.Sort(out)
	return some(out)
}

func hasPort(pod *objectv1.Pod, name string) bool {
	return slices.ContainsFunc(pod.GetSpec().GetContainers(), func(c *objectv1.Container) bool {
		return slices.ContainsFunc(c.GetPorts(), func(port *objectv1.ContainerPort) bool { return port.GetName() == name })
	})
}

func (p *page) slice(ctx context.Context, o *objectv1.EndpointSlice) {
	p.head(o)
	p.field(0, "AddressType", o.GetAddressType())
	p.line(0, "Ports:")
	p.line(1, "Name\tPort\tProtocol")
	p.line(1, "----\t----\t--------")
	for _, port := range o.GetPorts() {
		number := "<unset>"
		if port.Port != nil {
			number = strconv.Itoa(int(port.GetPort()))
		}
		p.line(1, or(port.GetName(), "<unset>")+"\t"+number+"\t"+or(port.GetProtocol(), "TCP"))
	}
	p.line(0, "Endpoints:")
	for _, e := range o.GetEndpoints() {
		p.line(1, "- Addresses:\t"+joined(e.GetAddresses()))
		conditions := e.GetConditions()
		if conditions == nil {
			conditions = &objectv1.EndpointConditions{}
		}
		p.field(2, "Ready", condOf(conditions.Ready))
		p.field(2, "Serving", condOf(conditions.Serving))
		p.field(2, "Terminating", condOf(conditions.Terminating))
		p.optional(2, "Hostname", e.GetHostname())
		if ref := e.GetTargetRef(); ref != nil {
			p.field(2, "TargetRef", ref.GetKind()+"/"+ref.GetName())
		}
		p.optional(2, "NodeName", e.GetNodeName())
		p.optional(2, "Zone", e.GetZone())
	}
	service := o.GetMetadata().GetLabels()[labelService]
	if service == "" {
		p.warn("no label %s: the slice belongs to no Service", labelService)
		return
	}
	if _, found, ok := get[*objectv1.Service](ctx, p, "Service", o.GetMetadata().GetNamespace(), service); ok && !found {
		p.warn("service %s does not exist: nothing leads to these endpoints", service)
	}
}

func condOf(b *bool) string {
	if b == nil {
		return "<unset>"
	}
	return strconv.FormatBool(*b)
}
