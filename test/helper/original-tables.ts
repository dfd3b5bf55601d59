/** The two original tables, from before this library had its own. */
export const originalTables = `
  CREATE TABLE ai_credits (
    user_id VARCHAR(255) PRIMARY KEY,
    total_credits INTEGER DEFAULT 10000,
    used_credits INTEGER DEFAULT 0,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
  );
  CREATE TABLE ai_credit_usage (
    id SERIAL PRIMARY KEY,
    user_id VARCHAR(255),
    credits_used INTEGER,
    operation VARCHAR(50),
    metadata JSONB,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
  );`
