/* A label row at any temperature, as logitstore/temperature.py computes it.
 *
 * Shape legend: N label rows, K stored entries per row, M temperatures. With b = 1/T, the log of the
 * tail's sum S(b) = log(sum over ids not stored of exp(b * logit)) is the polynomial in b through the
 * stored temperatures and ln(number of ids not stored) at b = 0. It is exact at stored temperatures.
 */

function decodeArray(base64, Kind) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/** The typed arrays of a sequence's payload (payload.py) and what is needed beside them. */
function decodeRows(payload) {
  const rows = payload.rows;
  return {
    numRows: rows.num_rows,
    topK: rows.top_k,
    vocabSize: payload.vocab_size,
    temperatures: payload.temperatures,
    logits: decodeArray(rows.logits_NK, Float32Array),
    tokenIds: decodeArray(rows.token_ids_NK, Int32Array),
    count: decodeArray(rows.count_N, Int32Array),
    logsumexp: decodeArray(rows.logsumexp_NM, Float32Array),
    logTailMass: decodeArray(rows.log_tail_mass_NM, Float32Array),
    labelLogprob: decodeArray(rows.label_logprob_N, Float32Array),
    labelRank: decodeArray(rows.label_rank_N, Int32Array),
    lossMask: decodeArray(rows.loss_mask_N, Uint8Array),
  };
}

/** S and dS/db of row i at b = 1/T, by Newton's divided differences. Null where there is no tail. */
function tailSum(rows, i, temperature) {
  const M = rows.temperatures.length;
  const numOutside = rows.vocabSize - rows.count[i];
  const knots = [0];
  const table = [Math.log(numOutside)];
  for (let m = 0; m < M; m++) {
    const sum = rows.logTailMass[i * M + m] + rows.logsumexp[i * M + m];
    if (numOutside <= 0 || !Number.isFinite(sum)) return null;
    knots.push(1 / rows.temperatures[m]);
    table.push(sum);
  }
  for (let order = 1; order <= M; order++) {
    for (let j = M; j >= order; j--) {
      table[j] = (table[j] - table[j - 1]) / (knots[j] - knots[j - order]);
    }
  }
  const b = 1 / temperature;
  let value = table[M];
  let slope = 0;
  for (let j = M - 1; j >= 0; j--) {
    slope = slope * (b - knots[j]) + value;
    value = value * (b - knots[j]) + table[j];
  }
  return { value, slope };
}

/**
 * Row i at a temperature: the log-probabilities of its stored entries, the tail's, and the entropy in
 * nats over the whole vocabulary. The tail's own entropy is S - b dS/db, within 0 and ln(ids outside).
 */
function rowAt(rows, i, temperature) {
  const M = rows.temperatures.length;
  const start = i * rows.topK;
  const count = rows.count[i];
  const tail = tailSum(rows, i, temperature);
  const stored = rows.temperatures.indexOf(temperature);
  let normaliser;
  if (stored >= 0) {
    normaliser = rows.logsumexp[i * M + stored];
  } else {
    let top = tail ? tail.value : -Infinity; // a student's entries are in its teacher's order
    for (let k = 0; k < count; k++) top = Math.max(top, rows.logits[start + k] / temperature);
    let sum = 0;
    for (let k = 0; k < count; k++) sum += Math.exp(rows.logits[start + k] / temperature - top);
    if (tail) sum += Math.exp(tail.value - top);
    normaliser = top + Math.log(sum);
  }
  const logprobs = new Float64Array(count);
  let entropy = 0;
  for (let k = 0; k < count; k++) {
    const logprob = rows.logits[start + k] / temperature - normaliser;
    logprobs[k] = logprob;
    if (logprob > -Infinity) entropy -= Math.exp(logprob) * logprob;
  }
  const logTail = stored >= 0 ? rows.logTailMass[i * M + stored] : tail ? tail.value - normaliser : -Infinity;
  if (Number.isFinite(logTail)) {
    const most = Math.log(Math.max(rows.vocabSize - count, 1));
    const within = tail ? Math.min(Math.max(logTail + normaliser - tail.slope / temperature, 0), most) : most;
    entropy += Math.exp(logTail) * (within - logTail);
  }
  return { logprobs, logTail, entropy, normaliser };
}
